"""The version of this package, and the name under which it is installed."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version

NAME = "rebasin-utils"

#: Until version 0.1; another project on PyPI has that name.
OLD_NAME = "rebasin"


@cache
def own_version() -> str:
    """The installed version; "unknown" where the package is used without being installed."""
    try:
        return version(NAME)
    except PackageNotFoundError:
        return version(OLD_NAME) if old_name() else "unknown"


def old_name() -> bool:
    """Whether this package is installed under its old name only."""
    try:
        version(NAME)
    except PackageNotFoundError:
        pass
    else:
        return False
    try:
        old = distribution(OLD_NAME)
    except PackageNotFoundError:
        return False
    return "rebasin_utils" in (old.read_text("top_level.txt") or "").split()
