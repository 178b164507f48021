"""How every command ends: one line for what the user can put right, and no process left waiting for another."""
import os
import sys
import time
import traceback

import jax

from simclr_jax.errors import UsageError

# What a collective raises when the process at its other end is gone.
LOST = "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed"


def command(main) -> None:
    """Runs `main(sys.argv)`. A UsageError is one line on stderr and exit code 2, Ctrl-C outside of training is 130."""
    try:
        main(sys.argv)
        return
    except UsageError as e:
        print(f"error: {e}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except Exception as e:
        if jax.distributed.is_initialized() and any(sign in str(e) for sign in LOST):
            print("error: another process of this job went away; its own last lines say why", file=sys.stderr)
            time.sleep(1)  # that process ends first, so that a launcher sees its exit code
        else:
            traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized():
        os._exit(code)  # an ordinary exit would wait minutes for processes that wait for this one
    sys.exit(code)
