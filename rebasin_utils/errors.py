"""The exceptions that a user reads: one sentence each, no traceback on the command line."""

from __future__ import annotations

from collections.abc import Mapping


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


def require_state(state: object, what: str = "state") -> None:
    """Refuse what is no mapping of tensors by name, such as a module.

    Raises:
        InputError: with what to give instead of `what`.
    """
    if isinstance(state, Mapping):
        return
    hint = "its state_dict()" if hasattr(state, "state_dict") else "a dict of tensors by name"
    raise InputError(f"{what} is a {type(state).__name__}: give {hint}")
