"""How every command ends: one line for what the user can put right, and no process left waiting for another."""
import os
import sys
import traceback

import jax

from simclr_jax.errors import UsageError


def command(main) -> None:
    """Runs `main(sys.argv)`. A UsageError is one line on stderr and its exit code, Ctrl-C outside training is 130."""
    try:
        main(sys.argv)
        return
    except UsageError as e:
        print(f"error: {e}", file=sys.stderr)
        code = e.code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except Exception:
        traceback.print_exc()
        code = 1
    if jax.distributed.is_initialized():
        leave(code)  # an ordinary exit would wait minutes for processes that wait for this one
    sys.exit(code)


def leave(code: int) -> None:
    """Ends the process from any thread, at once."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # a closed pipe is no reason to stay
            pass
    os._exit(code)
