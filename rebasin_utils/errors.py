"""The exceptions that a user reads: one sentence each, no traceback on the command line."""


class InputError(ValueError):
    """Bad input, said in one sentence: the field, its value, and what is allowed."""


class StoreError(InputError):
    """The store cannot be written, so that going on would lose what is computed."""


class RunError(RuntimeError):
    """A part of a run failed through no fault of the input; the sentence says where to look."""


class RanksLost(RunError):
    """One of several processes that work on a run together has failed, so that all must end."""


class Interrupted(BaseException):
    """Ctrl-C, told from a `KeyboardInterrupt`, which the command line's library would swallow."""
