"""The one exception for what a user can put right."""


class UsageError(ValueError):
    """Something the user gave cannot work.

    The message is one line: what was given, what was wanted, what to do. The commands print it without a traceback
    and leave with exit code 2; anything else that escapes is a bug of ours and keeps its traceback.
    """
