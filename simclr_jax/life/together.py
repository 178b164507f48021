"""What processes settle on the host, through the job's key-value store: no device takes part, and who lacks is named.

Every function is for all processes, in the same order. With one process each returns at once.
"""
import collections
import zlib

import jax

from simclr_jax.errors import PeerError, UsageError
from simclr_jax.life import job

WAIT = 1800.0  # seconds for processes to come; the first are there long before the last, which may still read its data

_turns: collections.Counter = collections.Counter()


def gather(text: str, what: str, *, wait: float | None = None) -> list[str]:
    """Each process's text, by process.

    Args:
      text: this process's; what: what is settled, for the message; wait: seconds.

    Raises:
      PeerError: some process did not come; names it.
    """
    client = job.client()
    if client is None or jax.process_count() == 1:
        return [text]
    _turns[what] += 1
    key = f"simclr_jax/together/{what}/{_turns[what]}"
    client.key_value_set(f"{key}/{jax.process_index()}", "=" + text)  # an empty value would be no value
    wait = WAIT if wait is None else wait
    try:
        client.wait_at_barrier(key, max(1, round(1000 * wait)))
    except Exception as e:
        here = _read(client, key)
        missing = [str(i) for i in range(jax.process_count()) if i not in here]
        who = f"process {', '.join(missing)}" if missing else "some process"
        raise PeerError(f"{who} did not come to {what!r} within {wait:g} s; see its own last lines"
                        + ("" if missing else f" ({' '.join(str(e).split())[:120]})")) from None
    here = _read(client, key)
    return [here[i] for i in range(jax.process_count())]


def _read(client, key) -> dict[int, str]:
    return {int(k.rsplit("/", 1)[1]): v[1:] for k, v in client.key_value_dir_get(key + "/")}


def barrier(what: str, *, wait: float | None = None) -> None:
    """Waits for all processes. Raises as `gather`."""
    gather("", what, wait=wait)


def of_lead(value: int, what: str) -> int:
    """Process 0's number, on all processes."""
    return int(gather(str(value), what)[0])


def agree(value: str, what: str) -> None:
    """Refuses to go on when processes hold different values of what must be one (a config, a list of shards).

    Args:
      value: this process's value; what: its name, for the message. Long values are compared by their CRC-32.

    Raises:
      UsageError: they differ; names the processes and, if they are short, the values.
    """
    values = gather(value if len(value) < 200 else f"{zlib.crc32(value.encode()):08x}", what)
    if odd := [i for i, v in enumerate(values) if v != values[0]]:
        shown = f" ({values[odd[0]]}, not {values[0]})" if len(value) < 200 else ""
        raise UsageError(f"{what} differs between processes: {', '.join(map(str, odd))} not as in process 0{shown}; "
                         "start all with the same command on the same files")


def refuse_together(problem: str) -> None:
    """Raises on every process if any has a problem, so that none is left waiting for one that has gone.

    Args:
      problem: this process's, one line; empty if it has none.

    Raises:
      UsageError: this process's own problem, else the first that another has, with its number.
    """
    everyone = gather(problem, "what is refused before the start")
    for i, text in enumerate(everyone):
        if problem or text:
            raise UsageError(problem or f"process {i}: {text}")
