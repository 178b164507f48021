#!/usr/bin/env bash
# Several real processes on this machine: a pod in miniature.
#
#   launch/local.sh N --config=FILE --workdir=DIR [...]     N processes of simclr_jax.train
#   launch/local.sh N --dry-run --config=...                print what would run
#
# PYTHON names the interpreter (default: .venv/bin/python, else python3). Each process's output is prefixed by its number.
set -euo pipefail

usage="usage: launch/local.sh N [--dry-run] --config=FILE --workdir=DIR [...]"
[[ ${1:-} =~ ^[1-9][0-9]*$ ]] || { echo "error: got '${1:-}' for the number of processes; $usage" >&2; exit 2; }
n=$1
shift
dry=false
if [[ ${1:-} == --dry-run ]]; then dry=true; shift; fi

root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-$root/.venv/bin/python}
[[ -x $python || -n ${PYTHON:-} ]] || python=python3
# Port 0 is asked of the kernel once and handed on; PORT overrides.
port=${PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')}

pids=()
for ((i = 0; i < n; i++)); do
  command=("$python" -m simclr_jax.train "$@" --coordinator="localhost:$port" --processes="$n" --process="$i")
  if $dry; then
    printf '%q ' "${command[@]}"
    echo
  else
    "${command[@]}" > >(sed -u "s/^/[$i] /") 2>&1 &
    pids+=($!)
  fi
done
$dry && exit 0

# A signal to this script is one to every process; the first process that fails ends the others. The status is that of
# the first failure.
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
status=0
while [[ -n $(jobs -rp) ]]; do
  code=0
  wait -n || code=$?
  # A trapped signal cuts the wait short with 128 + its number while the processes still run.
  if ((code != 0 && status == 0)) && ! { ((code > 128)) && [[ $(jobs -rp | wc -l) -eq $n ]]; }; then
    status=$code
    jobs -rp | xargs -r kill -TERM 2>/dev/null || true
  fi
done
exit "$status"
