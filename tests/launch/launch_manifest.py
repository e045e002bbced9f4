"""The shape of the manifest of launch/gke_jobset.yaml: what fields there are, and of what type."""

import re

NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
WHOLE = re.compile(r"[0-9]+")
BUCKET_VOLUME = {
    "name": {"bucket"},
    "csi": {
        "driver": {"gcsfuse.csi.storage.gke.io"},
        "volumeAttributes": {"bucketName": str, "mountOptions": str},
    },
}
CONTAINER = {
    "name": NAME,
    "image": str,
    "env?": [{"name": str, "valueFrom": {"fieldRef": {"fieldPath": str}}}],
    "command": [str],
    "args": [str],
    "resources": {
        "requests": {"cpu?": WHOLE, "memory?": str, "google.com/tpu?": int},
        "limits": {"memory?": str, "google.com/tpu?": int},
    },
    "volumeMounts": [{"name": {"bucket"}, "mountPath": {"/gcs"}}],
}
POD = {
    "metadata": {"annotations": {"gke-gcsfuse/volumes": {"true"}}},
    "spec": {
        "restartPolicy": {"Never"},  # which a podFailurePolicy asks for
        "serviceAccountName": NAME,
        "terminationGracePeriodSeconds?": int,
        "nodeSelector?": {
            "cloud.google.com/gke-tpu-accelerator": {"tpu-v5-lite-podslice"},
            "cloud.google.com/gke-tpu-topology": str,
            "cloud.google.com/gke-spot?": {"true"},
        },
        "tolerations?": [{"key": str, "operator": {"Exists"}, "effect": {"NoSchedule"}}],
        "containers": [CONTAINER],
        "volumes": [BUCKET_VOLUME],
    },
}
POD_FAILURE_RULE = {
    "action": {"FailJob", "Ignore"},
    "onExitCodes?": {"containerName": NAME, "operator": {"In"}, "values": [int]},
    "onPodConditions?": [{"type": {"DisruptionTarget"}}],
}
REPLICATED_JOB = {
    "name": NAME,
    "replicas": int,
    "dependsOn?": [{"name": NAME, "status": {"Complete", "Ready"}}],
    "template": {
        "metadata?": {
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": {"cloud.google.com/gke-nodepool"}
            }
        },
        "spec": {
            "parallelism": int,
            "completions": int,
            "completionMode?": {"Indexed"},
            "backoffLimit": int,
            "podFailurePolicy": {"rules": [POD_FAILURE_RULE]},
            "template": POD,
        },
    },
}
JOB_SET = {
    "apiVersion": {"jobset.x-k8s.io/v1alpha2"},
    "kind": {"JobSet"},
    "metadata": {"name": NAME},
    "spec": {
        "network": {"enableDNSHostnames": bool},
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [
                {
                    "name": re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?"),
                    "action": {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"},
                    "targetReplicatedJobs?": [NAME],
                    "onJobFailureReasons?": [{"PodFailurePolicy", "BackoffLimitExceeded"}],
                    "onJobFailureMessagePatterns?": [str],
                }
            ],
        },
        "replicatedJobs": [REPLICATED_JOB],
    },
}


def errors(value, shape=JOB_SET, place=""):
    """Where `value` departs from `shape`: fields (a `?` may be missing), lists, choices, types."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [f"{place}: not an object"]
        known = {key.removesuffix("?") for key in shape}
        found = [f"{place}/{key}: unknown" for key in value if key not in known]
        for key, inner in shape.items():
            field = key.removesuffix("?")
            if field in value:
                found += errors(value[field], inner, f"{place}/{field}")
            elif field == key:
                found.append(f"{place}/{key}: missing")
        return found
    if isinstance(shape, list):
        if not isinstance(value, list) or not value:
            return [f"{place}: not a list of something"]
        return [e for i, item in enumerate(value) for e in errors(item, shape[0], f"{place}/{i}")]
    if isinstance(shape, set):
        valid = isinstance(value, str) and value in shape
    elif isinstance(shape, re.Pattern):
        valid = isinstance(value, str) and shape.fullmatch(value)
    else:
        valid = type(value) is shape
    return [] if valid else [f"{place}: {value!r}"]
