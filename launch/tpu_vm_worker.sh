#!/usr/bin/env bash
# What one host of a slice does; tpu_vm.sh copies this file to every host and calls it there.
#
#   tpu_vm_worker.sh prepare BUCKET archive FILE           install the code, mount the bucket
#   tpu_vm_worker.sh prepare BUCKET git URL REVISION
#   tpu_vm_worker.sh train NAME ARGUMENT…                  exits as clp_jax.train does
#
# gcloud repeats a command whose connection was lost. Training therefore runs on its own, and a second
# `train` follows the one under way. `prepare` stops it first, which saves it.
set -euo pipefail

checkout=$HOME/clp-jax
environment=$HOME/clp-jax-environment
# Of the run: prepared, lock, supervisor, pid, log, exit_code. Whoever holds the lock is training.
run=$HOME/clp-jax-run
mount=${CLP_JAX_MOUNT:-/gcs}
mkdir -p "$run"

# No run may hold the TPU when the next one starts; SIGTERM lets it save.
stop() {
  local pid
  if ! flock --nonblock "$run/lock" true; then
    pid=$(cat "$run/pid")
    kill -TERM "$pid" || true
    if ! flock --timeout 300 "$run/lock" true; then
      kill -KILL "$pid" || true
      flock --timeout 60 "$run/lock" true
    fi
  fi
}

install_code() {
  rm -rf "$checkout"
  case $1 in
    archive)
      mkdir "$checkout"
      tar --extract --gzip --file="$HOME/$2" --directory="$checkout"
      ;;
    git)
      git clone --quiet "$2" "$checkout"
      git -C "$checkout" checkout --quiet "$3"
      ;;
  esac
  # The VM's own Python may be older than this project needs; uv brings one.
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --user --quiet uv
  python3 -m uv venv --quiet --allow-existing --python=3.11 "$environment"
  python3 -m uv pip install --quiet --python="$environment/bin/python" \
    --constraint="$checkout/launch/constraints-tpu.txt" --editable="${checkout}[tpu]"
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc
  curl --silent --show-error --fail https://packages.cloud.google.com/apt/doc/apt-key.gpg |
    sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  # A new VM may be updating itself, which holds the lock.
  sudo apt-get -o DPkg::Lock::Timeout=600 update --quiet
  sudo apt-get -o DPkg::Lock::Timeout=600 install --quiet --yes gcsfuse
}

mount_bucket() {
  [[ $(findmnt --noheadings --output=SOURCE "$mount") != "$1" ]] || return 0
  command -v gcsfuse >/dev/null || install_gcsfuse
  sudo mkdir -p "$mount"
  sudo chown "$(id -u):$(id -g)" "$mount"
  # Without a cache of metadata every host sees at once what another one wrote.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 "$1" "$mount"
}

# Trains, and keeps a copy of the log in the bucket, where a file is seen only when it was closed.
supervise() {
  local name=$1 code=0 trainer copier copied
  shift
  copied=$mount/logs/$name/$(hostname)-$(date -u +%Y%m%dT%H%M%SZ).log
  mkdir -p "${copied%/*}"
  cd "$checkout"
  "$environment/bin/python" -u -m clp_jax.train "$@" >>"$run/log" 2>&1 &
  trainer=$!
  echo "$trainer" >"$run/pid"
  (while sleep 60; do cp "$run/log" "$copied" || true; done) 9>&- &
  copier=$!
  wait "$trainer" || code=$?
  kill "$copier"
  cp "$run/log" "$copied" || true
  echo "$code" >"$run/exit_code"
}

train() {
  local shown=20
  exec 9>>"$run/lock"
  # One that has ended while the connection was lost is not begun again.
  if [[ -e $run/prepared ]] && flock --nonblock 9; then
    rm -f "$run/prepared" "$run/exit_code" "$run/pid"
    : >"$run/log"
    shown=+1
    setsid bash "$0" supervise "$@" </dev/null >>"$run/log" 2>&1 &
    echo $! >"$run/supervisor"
  fi
  exec 9>&-
  tail --lines="$shown" --follow --pid="$(cat "$run/supervisor")" "$run/log"
  # Without an exit code the host went down under the training.
  exit "$(cat "$run/exit_code" 2>/dev/null || echo 1)"
}

case $1 in
  prepare)
    stop
    install_code "${@:3}"
    mount_bucket "$2"
    touch "$run/prepared"
    ;;
  train) train "${@:2}" ;;
  supervise) supervise "${@:2}" ;;
esac
