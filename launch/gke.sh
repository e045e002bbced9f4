#!/usr/bin/env bash
# Trains on a slice of TPU v5e in GKE: fills in gke_jobset.yaml and gives it to the cluster.
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

usage() {
  cat <<'HELP'
Train on a slice of TPU v5e of the cluster that kubectl talks to, as a JobSet.

  launch/gke.sh --name=NAME --image=IMAGE --bucket=BUCKET [FLAG…] -- ARGUMENT…

Behind -- come the arguments of clp_jax.train. The JobSet compiles for the slice first, trains, and
restarts what was preempted.

  --name=NAME             of the JobSet, and of MODEL_DIR (/gcs/NAME) if no argument sets it
  --image=IMAGE           built from launch/Dockerfile
  --bucket=BUCKET         exists, with a hierarchical namespace; mounted at /gcs on every host
  --topology=4x4          1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 or 16x16 chips
  --spot                  on Spot nodes
  --service_account=default
                          of Kubernetes; needs the role Storage Object User on the bucket
  --namespace=default     of Kubernetes
  --max_retries=5         restarts after a crash; preemptions are not counted
  --dry_run               print the commands with the manifest, quoted for a shell, and run nothing

Instead of training (--name is enough):
  --status                print the state of the JobSet and of its pods
  --delete                delete the JobSet; the bucket stays
HELP
}

name="" image="" bucket="" topology=4x4 spot="" service_account=default namespace=default
max_retries=5 dry_run="" action=train training=()

value_flags=(name image bucket topology service_account namespace max_retries)
switches=(spot dry_run)
read_flags "$@"

check_name
case $action in
  status)
    run kubectl get "jobset/$name" "--namespace=$namespace" --output=wide
    run kubectl get pods "--namespace=$namespace" "--selector=jobset.sigs.k8s.io/jobset-name=$name"
    exit
    ;;
  delete)
    run kubectl delete "jobset/$name" "--namespace=$namespace"
    exit
    ;;
esac

require image "$image"
[[ $image =~ ^[A-Za-z0-9][A-Za-z0-9./:@_-]*$ ]] || die "--image=$image: the name of an image is needed"
check_bucket
read_topology
check_training
require_whole max_retries "$max_retries" 0
[[ $service_account =~ ^[a-z0-9.-]+$ ]] ||
  die "--service_account=$service_account: a name of Kubernetes is needed"

values=(
  "NAME=\"$name\"" "MAX_RETRIES=$max_retries" "HOSTS=$hosts" "CHIPS_PER_HOST=$chips_per_host"
  "TOPOLOGY=\"$topology\"" "BUCKET=\"$bucket\"" "IMAGE=\"$image\""
  "SERVICE_ACCOUNT=\"$service_account\""
  "${training[@]/#/PLAN_ARGUMENTS[]=}" "PLAN_ARGUMENTS[]=--topology=v5e:$topology"
  "${training[@]/#/TRAIN_ARGUMENTS[]=}" "TRAIN_ARGUMENTS[]=--multihost"
)
[[ $spot ]] || values+=(--without=SPOT)
manifest=$(python3 "$root/launch/fill_manifest.py" "$root/launch/gke_jobset.yaml" "${values[@]}")

# Not `apply`, which would do nothing, and say so in passing, where a JobSet of this name has ended.
create=(kubectl create "--namespace=$namespace" --filename=-)
if [[ $dry_run ]]; then
  printf "%s <<'MANIFEST'\n%s\nMANIFEST\n" "$(quoted "${create[@]}")" "$manifest"
else
  announce "${create[@]}"
  "${create[@]}" <<<"$manifest"
  say "follow it: kubectl logs --follow --namespace=$namespace --selector=jobset.sigs.k8s.io/jobset-name=$name --prefix"
fi
