import copy
import json
import re
import shlex
import subprocess
import sys

import launch_manifest
import pytest
import yaml
from launch_stubs import AWKWARD, CHIPS, GIN, HOSTS, LAUNCH, Stubs

CLUSTER = ("--name=run-1", "--image=europe-docker.pkg.dev/p/clp/clp-jax:1", "--bucket=gs://buck")


@pytest.fixture
def stubs(tmp_path):
    """A cluster that takes everything."""
    return Stubs(tmp_path / "stubs", "kubectl", "python")


def manifest_of(stubs, *arguments):
    """The manifest that gke.sh gives to the cluster."""
    done = stubs.run("gke.sh", *CLUSTER, *arguments)
    assert done.returncode == 0, done.stderr
    assert [call[:2] for call in stubs.calls] == [["kubectl", "create"]]
    return yaml.safe_load((stubs.folder / "stdin").read_text())


def parts(manifest):
    """The Jobs of the plan and of the hosts, and the containers of their pods."""
    plan, workers = (job["template"]["spec"] for job in manifest["spec"]["replicatedJobs"])
    (planner,) = plan["template"]["spec"]["containers"]
    (trainer,) = workers["template"]["spec"]["containers"]
    return plan, workers, planner, trainer


def check_slice(manifest, topology):
    _, workers, planner, trainer = parts(manifest)
    selector = workers["template"]["spec"]["nodeSelector"]
    assert selector["cloud.google.com/gke-tpu-topology"] == topology
    assert workers["parallelism"] == workers["completions"] == HOSTS[topology]
    chips = trainer["resources"]["limits"]["google.com/tpu"]
    assert trainer["resources"]["requests"]["google.com/tpu"] == chips
    assert chips * workers["parallelism"] == CHIPS[topology]
    assert planner["args"][-1] == f"--topology=v5e:{topology}"


def test_the_template_is_a_valid_manifest():
    manifest = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    assert launch_manifest.errors(manifest) == []
    check_slice(manifest, "4x4")
    for path in [("spec", "failurePolicy", "maxRestart"), ("metadata", "lables"), ("kind",)]:
        broken = copy.deepcopy(manifest)
        inner = broken
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = "4"
        assert len(launch_manifest.errors(broken)) == 1


@pytest.mark.parametrize("topology", CHIPS)
def test_each_shape_has_its_hosts_and_chips(topology, stubs):
    manifest = manifest_of(stubs, f"--topology={topology}", "--", *GIN)
    assert launch_manifest.errors(manifest) == []
    check_slice(manifest, topology)


def test_the_manifest_is_filled_in(stubs):
    flags = ("--service_account=trainer", "--max_retries=9", "--namespace=team")
    manifest = manifest_of(stubs, *flags, "--", *GIN)
    assert "--namespace=team" in stubs.calls[0]
    assert manifest["metadata"]["name"] == "run-1"
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 9
    plan, workers, planner, trainer = parts(manifest)
    for job, container in ((plan, planner), (workers, trainer)):
        pod = job["template"]["spec"]
        assert container["image"] == "europe-docker.pkg.dev/p/clp/clp-jax:1"
        assert pod["serviceAccountName"] == "trainer"
        assert pod["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "buck"
    training = [*GIN, "--gin.MODEL_DIR='/gcs/run-1'"]
    assert planner["args"] == [*training, "--topology=v5e:4x4"]
    assert [*trainer["command"], *trainer["args"]] == [
        "python", "-m", "clp_jax.train", *training, "--multihost",
    ]  # fmt: skip


def test_every_mark_of_the_template_is_filled_in():
    marks = set(re.findall(r"  # ([A-Z_]+)$", (LAUNCH / "gke_jobset.yaml").read_text(), re.M))
    script = (LAUNCH / "gke.sh").read_text()
    assert len(marks) == 11
    for mark in marks:
        assert re.search(rf"\b{mark}(=|\[\]=|\))", script) or f"without={mark}" in script, mark


def test_spot_nodes_are_asked_for_when_they_are_wanted(stubs):
    for flags in ((), ("--spot",)):
        manifest = manifest_of(stubs, *flags, "--", *GIN)
        assert launch_manifest.errors(manifest) == []
        pod = parts(manifest)[1]["template"]["spec"]
        assert ("cloud.google.com/gke-spot" in pod["nodeSelector"]) == bool(flags)
        assert len(pod["tolerations"]) == 1 + len(flags)


def test_arguments_reach_the_container_as_they_were_given(stubs):
    _, _, planner, trainer = parts(manifest_of(stubs, "--", *AWKWARD, "$(HOME) $$(HOME)"))
    # As Kubernetes reads them: $$ is $, and what is left of $(NAME) would be a variable.
    for arguments in (planner["args"], trainer["args"]):
        assert not re.search(r"(?<!\$)(\$\$)*\$\(", " ".join(arguments))
        read = [argument.replace("$$", "$") for argument in arguments[:-2]]
        assert read == [*AWKWARD, "$(HOME) $$(HOME)"]


def test_what_a_failure_leads_to():
    manifest = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    plan, workers, planner, trainer = parts(manifest)
    assert manifest["spec"]["replicatedJobs"][1]["dependsOn"] == [
        {"name": "plan", "status": "Complete"}
    ]

    def action(name, reason, message):
        """What the JobSet does about a Job that failed with a reason and a message."""
        for rule in manifest["spec"]["failurePolicy"]["rules"]:
            if (
                name in rule.get("targetReplicatedJobs", [name])
                and reason in rule.get("onJobFailureReasons", [reason])
                and any(
                    re.search(p, message) for p in rule.get("onJobFailureMessagePatterns", [""])
                )
            ):
                return rule["action"]
        return "RestartJobSet"

    def after(job, name, container, code):
        """The same, of a container that ended with an exit code."""
        for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
            codes = rule.get("onExitCodes", {"values": []})
            if code in codes["values"] and codes["containerName"] == container["name"]:
                message = (
                    f"Container {container['name']} for pod default/{name}-0 failed with "
                    f"exit code {code} matching {rule['action']} rule at index {index}"
                )
                return action(name, "PodFailurePolicy", message)
        return action(name, "BackoffLimitExceeded", "Job has reached the backoff limit")

    assert after(workers, "workers", trainer, 2) == "FailJobSet"
    assert after(workers, "workers", trainer, 75) == "RestartJobSetAndIgnoreMaxRestarts"
    for code in (1, 134, 137, 139, 143, 255):
        assert after(workers, "workers", trainer, code) == "RestartJobSet"
    evicted = "Pod default/x has condition DisruptionTarget matching FailJob rule at index 1"
    assert action("workers", "PodFailurePolicy", evicted) == "RestartJobSetAndIgnoreMaxRestarts"
    assert {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget"}]} in workers[
        "podFailurePolicy"
    ]["rules"]
    assert workers["backoffLimit"] == 0
    for code in (1, 2):
        assert after(plan, "plan", planner, code) == "FailJobSet"
    assert workers["template"]["spec"]["terminationGracePeriodSeconds"] >= 60


@pytest.mark.parametrize(("restarts", "calls"), [("0", 1), ("1", 0), ("12", 0)])
def test_the_plan_runs_before_the_first_start_alone(restarts, calls, stubs):
    manifest = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    planner = parts(manifest)[2]
    stubs.run("gke.sh", "--help")
    stubs.answer("clp_jax.plan", 1)
    (stubs.folder / "answers").write_text(json.dumps(stubs.answers))
    done = subprocess.run(
        [*planner["command"], "--a=b c", "--topology=v5e:4x4"],
        env={**stubs.environment, "RESTARTS": restarts}, check=False,
    )  # fmt: skip
    assert done.returncode == calls
    assert (
        stubs.calls == [["python", "-m", "clp_jax.plan", "--a=b c", "--topology=v5e:4x4"]] * calls
    )


def test_a_dry_run_prints_the_manifest_that_a_run_gives_to_the_cluster(stubs):
    command = (*CLUSTER, "--spot", "--topology=8x8", "--", *GIN, *AWKWARD)
    dry = stubs.run("gke.sh", "--dry_run", *command)
    assert dry.returncode == 0
    assert stubs.calls == []
    subprocess.run(["sh", "-c", dry.stdout], env=stubs.environment, cwd=stubs.folder, check=True)
    calls, manifest = stubs.calls, (stubs.folder / "stdin").read_text()
    assert stubs.run("gke.sh", *command).returncode == 0
    assert stubs.calls == calls
    assert (stubs.folder / "stdin").read_text() == manifest


def test_a_name_that_is_taken_is_told(stubs):
    stubs.answer("kubectl create", 1)
    assert stubs.run("gke.sh", *CLUSTER, "--", *GIN).returncode == 1


def test_a_name_of_a_list_that_no_line_has_is_refused():
    done = subprocess.run(
        [sys.executable, LAUNCH / "fill_manifest.py", LAUNCH / "gke_jobset.yaml", "NMAE=1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no line of the template is marked NMAE" in done.stderr


def test_status_and_delete_of_a_job_set(stubs):
    assert stubs.run("gke.sh", "--name=run-1", "--namespace=team", "--delete").returncode == 0
    assert stubs.calls == [["kubectl", "delete", "jobset/run-1", "--namespace=team"]]
    assert stubs.run("gke.sh", "--name=run-1", "--status").returncode == 0
    assert [call[1] for call in stubs.calls] == ["get", "get"]
    printed = stubs.run("gke.sh", "--name=run-1", "--delete", "--dry_run").stdout
    assert shlex.split(printed) == ["kubectl", "delete", "jobset/run-1", "--namespace=default"]
