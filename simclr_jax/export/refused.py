"""How a file that cannot be had is refused: one line that names it, says what is wrong and what to do."""
import contextlib
import struct
import zipfile
import zlib

from simclr_jax.errors import UsageError

DAMAGED = "it is damaged or no such file: get it again"


class Refused(ValueError):
    """What is wrong with a file, and what to do about it."""

    def __init__(self, what: str, do: str = DAMAGED):
        super().__init__(what)
        self.do = do


@contextlib.contextmanager
def refusing(path, do: str = DAMAGED):
    """Whatever a hostile or broken file makes its reader raise within becomes a UsageError of one line.

    Args:
      path: the file, for the message; do: what to do, where the reader does not say so itself.
    """
    try:
        yield
    except UsageError:
        raise
    except Refused as e:
        raise UsageError(f"{path}: {e}; {e.do}") from None
    except OSError as e:
        why = e.strerror or line(e)
        raise UsageError(f"{path}: cannot be read ({why}); give a local file that you may read") from None
    except MemoryError:
        raise UsageError(f"{path}: it asks for more memory than there is; {do}") from None
    except (ValueError, IndexError, KeyError, TypeError, EOFError, OverflowError, RecursionError, NotImplementedError,
            struct.error, zipfile.BadZipFile, zlib.error) as e:
        raise UsageError(f"{path}: {line(e)}; {do}") from None


def line(e: BaseException) -> str:
    """The text of an error, or its kind, in one line of at most 200 printable characters."""
    text = " ".join(str(e).split()) or type(e).__name__
    return shown(text if len(text) <= 200 else f"{text[:120]} ... {text[-70:]}")


def shown(name) -> str:
    """A text from a file as it can be printed: one line without control characters, and not a long one."""
    text = str(name)
    text = text if len(text) <= 200 else text[:200] + "..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
