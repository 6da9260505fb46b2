"""Where stages and chapters are found: in this package, in installed plug-ins, in named modules.

A plug-in is a module with a list `STAGES`, a list `CHAPTERS`, or both. It is installed with an
entry point in the group `rebasin`, or named in a study's settings (`plugins`), which travel to
every worker. The package's own stages and chapters are found by the same door.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from rebasin_utils.errors import InputError

GROUP = "rebasin"

OWN_STAGES = "rebasin_utils.study.stages"
OWN_CHAPTERS = "rebasin_utils.chapters.contents"


def stages(plugins: Sequence[str] = ()) -> dict[str, Any]:
    """Every `stage.Stage` by its name, this package's own first.

    Raises:
        InputError: when a plug-in cannot be imported, or two stages have one name.
    """
    return _all("STAGES", OWN_STAGES, tuple(plugins), "name")


def chapters(plugins: Sequence[str] = ()) -> dict[str, Any]:
    """Every chapter by its notebook's name, this package's own first."""
    return _all("CHAPTERS", OWN_CHAPTERS, tuple(plugins), "notebook")


def parts(plugins: Sequence[str] = ()) -> dict[str, type[BaseModel]]:
    """The parts of the settings that stages bring with them, by the stages' names."""
    return {name: stage.Part for name, stage in stages(plugins).items() if stage.Part is not None}


def forget() -> None:
    """Look for installed plug-ins again: one was installed while this process ran."""
    _all.cache_clear()
    _installed.cache_clear()


@cache
def _all(kind: str, own: str, plugins: tuple[str, ...], key: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for module in [_named(own), *_installed(), *map(_named, plugins)]:
        for thing in getattr(module, kind, ()):
            name = getattr(thing, key)
            if found.setdefault(name, thing) is not thing:
                raise InputError(
                    f"plugins: {module.__name__} brings {name!r}, which is there already"
                )
    return found


@cache
def _installed() -> tuple[ModuleType, ...]:
    return tuple(point.load() for point in entry_points(group=GROUP))


def _named(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(f"plugins = {name!r}: cannot be imported ({error})") from error
