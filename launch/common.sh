# shellcheck shell=bash
# What the launchers share; sourced by them.

dry=false  # true: commands are printed, not run

refuse() {
  echo "error: $*" >&2
  exit 2
}

# Words on one line, each as a shell would read it again.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s\n' "${line% }"
}

# A command, or with --dry-run the line that it is.
run() {
  if $dry; then quoted "$@"; else "$@"; fi
}

# Refuses what training would: after `--`, --config= and a --workdir= that all hosts reach and that outlives them.
check_training() {
  local arg config="" workdir=""
  for arg in "$@"; do
    case $arg in
      --config=?*) config=$arg ;;
      --workdir=?*) workdir=$arg ;;
    esac
  done
  [[ -n $config ]] || refuse "no --config after '--'; wanted -- --config=FILE --workdir=DIR [...]"
  [[ -n $workdir ]] || refuse "no --workdir after '--'; wanted -- --config=FILE --workdir=DIR [...]"
  [[ $workdir == --workdir=*://* ]] ||
    refuse "$workdir is on one machine, and goes with it; wanted a bucket, as in --workdir=gs://BUCKET/run"
}

# VERSION:AxB[xC], as `python -m simclr_jax.plan --topology` has it, into: version, shape, chips. The shapes that Google
# offers: cloud.google.com/tpu/docs/{v2,v3,v4,v5e,v5p,v6e}. Of v4 and v5p, beyond 32 chips, all multiples of 4x4x4.
read_topology() {
  version=${1%%:*} shape=${1#*:}
  local known a b c
  case $version in
    v2) known=" 2x2 4x4 4x8 8x8 8x16 16x16 " ;;
    v3) known=" 2x2 4x4 4x8 8x8 8x16 16x16 16x32 32x32 " ;;
    v5e | v6e) known=" 1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16 " ;;
    v4 | v5p) known=" 2x2x1 2x2x2 2x2x4 2x4x4 " ;;
    *) refuse "--topology=$1: there is no TPU '$version'; wanted v2, v3, v4, v5e, v5p or v6e, as in --topology=v5e:8x8" ;;
  esac
  if [[ $shape =~ ^([1-9][0-9]*)x([1-9][0-9]*)(x([1-9][0-9]*))?$ ]]; then
    a=${BASH_REMATCH[1]} b=${BASH_REMATCH[2]} c=${BASH_REMATCH[4]:-1}
    if [[ $known == *" $shape "* ]] || { [[ $version =~ ^(v4|v5p)$ ]] && ((a % 4 + b % 4 + c % 4 == 0)); }; then
      # shellcheck disable=SC2034  # for those who source this
      chips=$((a * b * c))
      return
    fi
  fi
  known=${known# }
  [[ $version == v4 || $version == v5p ]] && known+="or multiples of 4x4x4 "
  refuse "--topology=$1: $version has no shape '$shape'; there are ${known% }"
}
