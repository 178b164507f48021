#!/usr/bin/env bash
# Runs on a host, over a connection that may break: keeps one command running there.
#
#   launch/worker.sh COMMAND...    start it unless it runs, follow its log, end with its exit code; again: attach to it
#   launch/worker.sh --stop        ask it to save and leave
#
# Log, process and exit code lie in ~/.simclr_jax (STATE names another directory).
set -euo pipefail
state=${STATE:-$HOME/.simclr_jax}
mkdir -p "$state"

alive() { [[ -s $state/pid ]] && kill -0 "$(<"$state/pid")" 2>/dev/null; }

if [[ ${1:-} == --stop ]]; then
  if alive; then pkill -TERM -P "$(<"$state/pid")"; else echo "nothing runs here"; fi
  exit 0
fi
(($#)) || { echo "error: no command given; usage: launch/worker.sh COMMAND..." >&2; exit 2; }

printf -v asked '%q ' "$@"
if alive; then
  [[ $(<"$state/command") == "$asked" ]] || {
    echo "error: another run goes on here: $(<"$state/command"); stop it first" >&2
    exit 2
  }
else
  rm -f "$state/code" "$state/pid"
  : > "$state/log"
  printf '%s' "$asked" > "$state/command"
  # A session of its own: it outlives the connection. Its output goes to the log alone.
  # shellcheck disable=SC2016
  STATE=$state setsid --fork bash -c 'echo $$ > "$STATE/pid"; "$@"; echo $? > "$STATE/code"' - "$@" \
    < /dev/null >> "$state/log" 2>&1
  until [[ -s $state/pid ]] && { alive || [[ -s $state/code ]]; }; do sleep 0.1; done
fi
tail -n +1 -f --pid="$(<"$state/pid")" "$state/log"
exit "$(cat "$state/code" 2>/dev/null || echo 1)"
