"""The one kind of error that is the caller's to mend."""


class UserError(ValueError):
    """A mistake in what was asked for; its message says in one line what is wrong and what to do.

    The command lines print it without a traceback and exit with status 1. Every other exception is a bug.
    """
