"""The exceptions for what a user can put right, each with the exit code of a command that meets it."""


class UsageError(ValueError):
    """Something the user gave cannot work.

    The message is one line: what was given, what was wanted, what to do. The commands print it without a traceback
    and leave with exit code 2; anything else that escapes is a bug of ours and keeps its traceback.
    """

    code = 2  # refused


class DataError(UsageError):
    """The examples of a run that has begun cannot be read."""

    code = 70


class NumericsError(UsageError):
    """Numbers that no further step can mend: not finite, or not the same where they must be."""

    code = 71


class CheckpointError(UsageError):
    """A checkpoint cannot be written, or none is whole."""

    code = 72


class PeerError(UsageError):
    """Another process of the job is gone or does not come. Started again, the job goes on."""

    code = 75
