#!/usr/bin/env bash
# Trains on a slice of TPU v5e VMs: checks that the run fits, rents the slice, trains, resumes, returns it.
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

usage() {
  cat <<'HELP'
Train on a slice of TPU v5e VMs, rented as a queued resource and returned when the training ends.

  launch/tpu_vm.sh --name=NAME --project=PROJECT --zone=ZONE --bucket=BUCKET [FLAG…] -- ARGUMENT…

Behind -- come the arguments of clp_jax.train. The same command goes on where an earlier one stopped.

  --name=NAME              of the slice, and of MODEL_DIR (/gcs/NAME) if no argument sets it
  --project=PROJECT        of Google Cloud
  --zone=ZONE              one that has v5e, e.g. us-west4-a
  --bucket=BUCKET          created if missing; mounted at /gcs on every host
  --topology=4x4           1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 or 16x16 chips
  --spot                   cheaper; when the slice is taken away, another is rented and the run resumed
  --service_account=EMAIL  of the VMs; needs the role Storage Object User on the bucket
  --revision=HEAD          of the code: a commit of this checkout, or of --git_url
  --git_url=URL            take the code from there and not from this checkout
  --skip_plan              do not compile for the slice beforehand
  --max_retries=5          failures of the training on a slice that is there
  --max_preemptions=50     slices that were taken away
  --max_wait_minutes=1440  for a slice to be ready
  --poll_seconds=60        between two looks at its state
  --keep                   leave the slice rented when the training has ended
  --dry_run                print the commands, quoted for a shell, and run nothing

Instead of training (--name, --project and --zone are enough):
  --status                 print the state of the slice
  --delete                 return the slice; the bucket stays

Exit code: that of the training (0 done, 2 wrong settings), 1 if there was no slice.
HELP
}

name="" project="" zone="" bucket="" topology=4x4 spot="" service_account="" revision=HEAD git_url=""
skip_plan="" max_retries=5 max_preemptions=50 max_wait_minutes=1440 poll_seconds=60 keep=""
dry_run="" action=train training=()

value_flags=(
  name project zone bucket topology service_account revision git_url max_retries max_preemptions
  max_wait_minutes poll_seconds
)
switches=(spot skip_plan keep dry_run)
read_flags "$@"

check_name
require project "$project"
require zone "$zone"
place=("--project=$project" "--zone=$zone")

delete_slice() {
  run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
}

# What is supposed of the slice in a dry run: that there is none until it was requested.
supposed_state=""

# Sets answer to what a command prints, in a dry run to what is supposed: ask SUPPOSED COMMAND…
ask() {
  local supposed=$1
  shift
  announce "$@"
  if [[ $dry_run ]]; then
    answer=$supposed
  else
    answer=$("$@")
  fi
}

# Sets state: ABSENT, UNKNOWN if it cannot be had, READY, or what the request or its VMs are in.
find_state() {
  state=UNKNOWN
  ask "$supposed_state" gcloud compute tpus queued-resources list "${place[@]}" \
    "--filter=name~/$name\$" "--format=value(state.state)" || return 0
  if [[ $answer == ACTIVE ]]; then
    # The request stays active for a while after its VMs were taken away.
    ask READY gcloud compute tpus tpu-vm list "${place[@]}" \
      "--filter=name~/$name\$" "--format=value(state)" || return 0
    answer=${answer:-PREEMPTED}
  fi
  state=${answer:-ABSENT}
}

case $action in
  status)
    find_state
    printf '%s\n' "$state"
    exit
    ;;
  delete)
    delete_slice
    exit
    ;;
esac

require bucket "$bucket"
check_bucket
read_topology
check_training
require_whole max_retries "$max_retries" 0
require_whole max_preemptions "$max_preemptions" 0
require_whole max_wait_minutes "$max_wait_minutes" 1
require_whole poll_seconds "$poll_seconds" 1
max_polls=$((max_wait_minutes * 60 / poll_seconds))
archive=${TMPDIR:-/tmp}/clp-jax-$name.tar.gz
cd "$root"

step() {
  if [[ $dry_run ]]; then
    printf '# %s\n' "$1"
  else
    say "$1"
  fi
}

# Returns the slice, as it costs until then, and ends: finish EXIT_CODE MESSAGE
finish() {
  [[ $dry_run ]] || say "$2"
  if [[ $keep ]]; then
    say "the slice $name is still rented: $(quoted "$0" "--name=$name" "${place[@]}" --delete)"
  else
    step "Return the slice"
    delete_slice || say "the slice $name could not be returned; it may still cost"
  fi
  exit "$1"
}

interrupted() {
  say "interrupted; the slice $name may be rented and training: the same command resumes, --delete returns it"
  exit 130
}
trap interrupted INT TERM

create_slice() {
  local flags=("--node-id=$name" "--accelerator-type=v5litepod-$chips"
    --runtime-version=v2-alpha-tpuv5-lite "${place[@]}")
  [[ ! $spot ]] || flags+=(--spot)
  [[ ! $service_account ]] || flags+=("--service-account=$service_account")
  run gcloud compute tpus queued-resources create "$name" "${flags[@]}"
  supposed_state=ACTIVE
}

preemptions=0

# Waits until the slice is there, and requests it if it is not. Ends the script if it cannot be had.
wait_for_slice() {
  local polls=0 last="" unknown=0
  while true; do
    find_state
    [[ $dry_run || $state == "$last" ]] || say "the slice $name is $state"
    last=$state
    case $state in
      READY) return ;;
      ABSENT) create_slice || finish 1 "the slice could not be requested" ;;
      SUSPENDED | PREEMPTED | TERMINATED | STOPPED)
        [[ $spot ]] || finish 1 "the slice is $state, which only happens to --spot unless it was stopped by hand"
        ((++preemptions <= max_preemptions)) ||
          finish 1 "the slice was taken away more than --max_preemptions=$max_preemptions times"
        delete_slice || say "deleting failed, which is tried again"
        ;;
      FAILED) finish 1 "the request failed; its quota, zone and project are to be looked at" ;;
      UNKNOWN) ((++unknown < 10)) || finish 1 "the state of the slice could not be had ten times" ;;
    esac
    ((++polls <= max_polls)) || finish 1 "no slice within --max_wait_minutes=$max_wait_minutes"
    [[ $dry_run ]] || sleep "$poll_seconds"
  done
}

# on_hosts ARGUMENT…: runs tpu_vm_worker.sh on every host, and fails as it fails.
on_hosts() {
  run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all --quiet \
    "--command=bash tpu_vm_worker.sh $(quoted "$@")"
}

train() {
  local files=(launch/tpu_vm_worker.sh) from=(git "$git_url" "$revision")
  if [[ ! $git_url ]]; then
    files+=("$archive")
    from=(archive "${archive##*/}")
  fi
  step "Copy the code to every host, install it, and mount the bucket"
  run gcloud compute tpus tpu-vm scp "${files[@]}" "$name:" "${place[@]}" --worker=all --quiet &&
    on_hosts prepare "$bucket" "${from[@]}" || return 1
  step "Train"
  on_hosts train "$name" "${training[@]}" --multihost
}

if [[ ! $skip_plan ]]; then
  step "Compile for the slice on this machine: nothing is rented for a run that does not fit"
  code=0
  run python -m clp_jax.plan "${training[@]}" "--topology=v5e:$topology" || code=$?
  if ((code)); then
    say "the run does not pass its plan (exit code $code); nothing was created"
    exit "$code"
  fi
fi
if [[ ! $git_url ]]; then
  step "Pack the code"
  run git archive --format=tar.gz "--output=$archive" "$revision"
fi
step "Create the bucket if it is missing; in a hierarchical one a folder is renamed at once"
# In a dry run it is supposed to be missing.
if ! run gcloud storage buckets describe "gs://$bucket" "--project=$project" \
  "--format=value(name)" || [[ $dry_run ]]; then
  run gcloud storage buckets create "gs://$bucket" "--project=$project" "--location=${zone%-*}" \
    --uniform-bucket-level-access --enable-hierarchical-namespace
fi

retries=0
while true; do
  step "Request the slice and wait for it"
  wait_for_slice
  code=0
  train || code=$?
  case $code in
    0) finish 0 "the training is done" ;;
    2) finish 2 "the training has wrong settings or input, as its last lines say" ;;
  esac
  say "the training ended with exit code $code"
  find_state
  if [[ $state == READY || $state == UNKNOWN ]]; then
    ((++retries <= max_retries)) ||
      finish "$code" "the training failed more than --max_retries=$max_retries times"
    sleep "$poll_seconds"
  fi
done
