# shellcheck shell=bash disable=SC2034,SC2154
# What tpu_vm.sh and gke.sh have in common; they source it and set the variables of its flags.

program=${0##*/}

# Where both mount the bucket, on every host: MODEL_DIR lies below it.
mount=/gcs

topologies=(1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16)

# Ends with what has to be mended: wrong flags are never tried again.
die() {
  printf '%s: %s\n' "$program" "$1" >&2
  exit 2
}

say() {
  printf '%s: %s\n' "$program" "$1" >&2
}

((BASH_VERSINFO[0] >= 5)) || die "needs bash 5 or newer, this is $BASH_VERSION"

# Prints its arguments as the words of a shell command, with quotes where they are needed.
quoted() {
  local escaped="'\\''" separator="" word
  for word; do
    if [[ ! $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      word="'${word//\'/"$escaped"}'"
    fi
    printf '%s%s' "$separator" "$word"
    separator=" "
  done
}

# Shows a command: on stdout, to be pasted, in a dry run.
announce() {
  if [[ $dry_run ]]; then
    printf '%s\n' "$(quoted "$@")"
  else
    printf '+ %s\n' "$(quoted "$@")" >&2
  fi
}

# Shows a command and, unless this is a dry run, runs it.
run() {
  announce "$@"
  [[ $dry_run ]] || "$@"
}

# Sets the variable of each flag among its arguments, action, and training to what stands behind --.
# The script names its flags in value_flags (--flag=value) and switches (--flag).
read_flags() {
  local argument flag
  while (($#)); do
    argument=$1
    shift
    flag=${argument%%=*}
    flag=${flag#--}
    case $argument in
      --status | --delete) action=$flag ;;
      --help)
        usage
        exit
        ;;
      --)
        training=("$@")
        return
        ;;
      --*=*)
        is_one_of "$flag" "${value_flags[@]}" || unknown_argument "$argument"
        printf -v "$flag" %s "${argument#*=}"
        ;;
      *)
        is_one_of "$argument" "${switches[@]/#/--}" || unknown_argument "$argument"
        printf -v "$flag" yes
        ;;
    esac
  done
}

# is_one_of WORD KNOWN...
is_one_of() {
  local known
  for known in "${@:2}"; do
    [[ $known != "$1" ]] || return 0
  done
  return 1
}

unknown_argument() {
  die "unknown argument $1; --help lists the flags, and -- stands in front of the training's"
}

# Sets chips, hosts and chips_per_host of $topology. Up to eight chips sit in one host, four in each
# host of a larger slice.
read_topology() {
  local known
  for known in "${topologies[@]}"; do
    if [[ $topology == "$known" ]]; then
      chips=$((${topology%x*} * ${topology#*x}))
      hosts=$((chips > 8 ? chips / 4 : 1))
      chips_per_host=$((chips / hosts))
      return
    fi
  done
  die "--topology=$topology is no slice of v5e; these are: ${topologies[*]}"
}

# require FLAG VALUE
require() {
  [[ $2 ]] || die "--$1= is missing; --help describes it"
}

# require_whole FLAG VALUE LEAST
require_whole() {
  if [[ ! $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] || (($2 < $3)); then
    die "--$1=$2: a whole number from $3 on is needed"
  fi
}

check_name() {
  require name "$name"
  [[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    die "--name=$name: up to 40 lower-case letters, digits and hyphens, a letter first"
}

check_bucket() {
  bucket=${bucket#gs://}
  bucket=${bucket%/}
  require bucket "$bucket"
  [[ $bucket =~ ^[a-z0-9][a-z0-9._-]+[a-z0-9]$ ]] ||
    die "--bucket=$bucket: the name of a bucket is needed, without a folder"
}

# Sees to it that $training, the arguments of clp_jax.train, write below the mounted bucket.
check_training() {
  local argument found=""
  ((${#training[@]})) || die "nothing to train: behind -- come the arguments of clp_jax.train"
  for argument in "${training[@]}"; do
    case $argument in
      --multihost) die "--multihost is added by this script" ;;
      --dry_run) die "--dry_run of this script stands in front of --" ;;
      --gin.MODEL_DIR=[\'\"]"$mount"/?*) found=yes ;;
      --gin.MODEL_DIR=*)
        die "$argument: MODEL_DIR must be below $mount, where the bucket is mounted"
        ;;
    esac
  done
  [[ $found ]] || training+=("--gin.MODEL_DIR='$mount/$name'")
}
