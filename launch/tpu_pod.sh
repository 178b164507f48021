#!/usr/bin/env bash
# Trains on a TPU pod: makes or takes the TPU VM, copies this project to every host, installs it, runs, follows the log,
# and after a preemption makes the VM again and goes on where the run stood.
#
#   launch/tpu_pod.sh --name=NAME --zone=ZONE --topology=v5e:8x8 -- --config=FILE --workdir=gs://BUCKET/RUN [...]
#
#   --project=ID      of Google Cloud (default: gcloud's)
#   --queued          ask for a queued resource, and wait for it
#   --spot            cheaper, and may be taken away
#   --runtime=IMAGE   of the VM (default: the plain one of that TPU)
#   --restarts=N      how often to go on after a preemption or exit code 75 (default 100)
#   --delete          delete the VM at the end
#   --stop            ask a run on that VM to save and leave, and do nothing else
#   --dry-run         print every command of a first launch, run none
#
# Ctrl-C here leaves the run as it is: the same command attaches to it. Exit code: that of training.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

name="" zone="" topology="" project="" runtime="" restarts=100
queued=false spot=false delete=false stop=false
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --queued) queued=true ;;
    --spot) spot=true ;;
    --delete) delete=true ;;
    --stop) stop=true ;;
    --dry-run) dry=true ;;
    --) shift; break ;;
    *) refuse "unknown flag '$1'; the flags of training stand after '--'; see the head of launch/tpu_pod.sh" ;;
  esac
  shift
done
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
  refuse "--name='$name', wanted small letters, digits and hyphens, as in --name=simclr-1"
[[ -n $zone ]] || refuse "no --zone given, as in --zone=us-central1-a"
[[ $restarts =~ ^[0-9]+$ ]] || refuse "--restarts='$restarts', wanted a whole number"
if ! $stop; then
  [[ -n $topology ]] || refuse "no --topology given, as in --topology=v5e:8x8"
  read_topology "$topology"
  check_training "$@"
fi

where=(--zone="$zone" ${project:+--project="$project"})
tpu_vm=(gcloud compute tpus tpu-vm)
queue=(gcloud compute tpus queued-resources)
# Names of accelerators count chips of v5e and v6e, and TensorCores, two a chip, of the others.
case ${version:-} in
  v5e) accelerator=v5litepod-$chips image=v2-alpha-tpuv5-lite ;;
  v6e) accelerator=v6e-$chips image=v2-alpha-tpuv6e ;;
  v5p) accelerator=v5p-$((2 * chips)) image=v2-alpha-tpuv5 ;;
  ?*) accelerator=$version-$((2 * chips)) image=tpu-ubuntu2204-base ;;
esac
image=${runtime:-${image:-}}
archive=${TMPDIR:-/tmp}/simclr_jax-$name.tgz

on_all() { run "${tpu_vm[@]}" ssh "$name" "${where[@]}" --worker=all --command="$1"; }

# The state of the VM, or of its queued resource, in `found`; empty if there is none. With --dry-run: $3.
ask() {
  local -n list=$1
  local command=("${list[@]}" list "${where[@]}" --filter="name~(^|/)$name\$" --format="value($2)")
  if $dry; then quoted "${command[@]}" && found=$3; else found=$("${command[@]}"); fi
}

create() {
  if $queued; then
    run "${queue[@]}" create "$name" --node-id="$name" "${where[@]}" --accelerator-type="$accelerator" \
      --runtime-version="$image" ${spot_flag[@]+"${spot_flag[@]}"}
  else
    run "${tpu_vm[@]}" create "$name" "${where[@]}" --accelerator-type="$accelerator" --version="$image" \
      ${spot_flag[@]+"${spot_flag[@]}"}
  fi
}

remove() {
  if $queued; then
    run "${queue[@]}" delete "$name" "${where[@]}" --force --quiet
  else
    run "${tpu_vm[@]}" delete "$name" "${where[@]}" --quiet
  fi
}

# Returns when the VM is ready; makes it if there is none, or if what there is was taken away.
ready() {
  local list=tpu_vm field=state good=READY
  if $queued; then list=queue field=state.state good=ACTIVE; fi
  ask "$list" "$field" "" || exit 1
  case $found in
    "$good") return ;;
    "") create || return ;;
    PREEMPTED | TERMINATED | SUSPENDED | FAILED) remove && create || return ;;
  esac
  while :; do
    ask "$list" "$field" "$good" || exit 1
    case $found in
      "$good") return ;;
      "" | PREEMPTED | TERMINATED | SUSPENDED | FAILED) return 1 ;;
    esac
    sleep "${WAIT:-30}"
  done
}

# Python 3.12 by uv: the VMs' own is older than JAX wants. A run that goes on keeps its code.
# shellcheck disable=SC2016
install='set -e; if kill -0 "$(cat .simclr_jax/pid 2>/dev/null)" 2>/dev/null; then exit 0; fi
rm -rf simclr_jax; mkdir simclr_jax; tar -xzf simclr_jax.tgz -C simclr_jax
export PATH="$HOME/.local/bin:$PATH"; command -v uv > /dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
[ -x .venv/bin/python ] || uv venv --quiet --python 3.12 .venv
cd simclr_jax; uv pip install --quiet --python ../.venv/bin/python -e ".[tpu]"'

copy() {
  run tar -czf "$archive" -C "$root" --exclude=__pycache__ simclr_jax configs launch pyproject.toml requirements.txt \
    README.md LICENSE &&
    run "${tpu_vm[@]}" scp "$archive" "$name:simclr_jax.tgz" "${where[@]}" --worker=all &&
    on_all "$install"
}

train() {
  on_all "cd simclr_jax && launch/worker.sh $(quoted ../.venv/bin/python -m simclr_jax.train "$@")"
}

if $stop; then
  on_all "simclr_jax/launch/worker.sh --stop"
  exit
fi
spot_flag=()
if $spot; then spot_flag=(--spot); fi
trap 'echo "the run goes on; the same command attaches to it, with --stop it saves and leaves" >&2; exit 130' INT

started=false code=0
for ((turn = 0; turn <= restarts; turn++)); do
  code=0
  if ready; then
    copy && started=true && { train "$@" || code=$?; } || code=255
  else
    code=255
    $started || break
  fi
  case $code in
    0 | 2 | 70 | 71 | 72) break ;;  # done, or nothing that another try would change
    75) ;;
    *)
      # The VM is gone, or the connection. Anything else is training's own failure.
      ask tpu_vm state "" || exit 1
      [[ $found != READY || $code == 255 ]] || break
      sleep "${WAIT:-30}"
      ;;
  esac
  echo "exit code $code: going on ($((turn + 1)) of $restarts)" >&2
done
if $delete; then
  remove || code=$?
elif ! $dry; then
  echo "$name is left as it is, and costs; to delete it: $(dry=true; remove)" >&2
fi
exit "$code"
