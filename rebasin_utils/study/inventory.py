"""What lies in a store, whether it is sound, and what nobody needs any more.

Nothing is removed but by `remove`, which is given a list that somebody has seen.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rebasin_utils.errors import InputError
from rebasin_utils.study import plugins
from rebasin_utils.study.plan import Plan
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.store import RECORD, Store


@dataclass(frozen=True)
class Entry:
    """An artifact as it lies there. path: relative to the store; study: whose run made it."""

    path: str
    stage: str
    study: str
    megabytes: float
    seconds: float
    made: str


def entries(store: Store) -> Iterator[Entry]:
    """Every artifact of the store, by stage. Checksums are not looked at."""
    for folder in _artifacts(store):
        path = str(folder.relative_to(store.root))
        try:
            record = json.loads((folder / RECORD).read_bytes())
            study, seconds, made = record["settings"]["name"], record["seconds"], record["made"]
        except (OSError, ValueError, LookupError, TypeError):
            study, seconds, made = "(damaged)", 0.0, ""
        yield Entry(path, folder.parent.name, study, megabytes(folder), seconds, made)


def damaged(store: Store) -> Iterator[tuple[str, str]]:
    """(path, what is wrong) of every artifact whose checksums do not match. Nothing is moved."""
    for folder in _artifacts(store):
        path = str(folder.relative_to(store.root))
        if (why := store.why_damaged(path)) is not None:
            yield path, why


def leftovers(store: Store) -> list[Path]:
    """What killed or mended runs left behind, and no run will use.

    Half-written artifacts, damaged ones that were set aside, checkpoints and failure notes of runs
    that were finished since.
    """
    found = [*store.root.glob(".writing-*"), *(store.root / ".damaged").glob("*")]
    done = {f"{folder.parent.name}-{_digest(folder)}" for folder in _artifacts(store)}
    for notes in (".checkpoints", ".failed"):
        found += [path for path in (store.root / notes).glob("*") if path.stem in done]
    return sorted(found)


def unneeded(store: Store, keep: Iterable[Settings]) -> list[Path]:
    """The artifacts that are part of none of these studies."""
    plans = [Plan(settings) for settings in keep]
    needed = {node.key.path for plan in plans for node in plan.all_nodes()}
    return [f for f in _artifacts(store) if str(f.relative_to(store.root)) not in needed]


def remove(store: Store, paths: Iterable[Path]) -> None:
    """Remove these for good. An artifact is there whole or gone, whenever this is stopped.

    Raises:
        InputError: while a run is at work on the store.
    """
    if working := store.at_work():
        raise InputError(
            f"store = {store.root}: a run is at work on it ({len(working)} artifacts); nothing was "
            "deleted, wait until it is done"
        )
    for path in paths:
        if path.is_dir():
            condemned = path.rename(store.root / f".writing-{path.name}")
            shutil.rmtree(condemned)
        else:
            path.unlink()


def megabytes(path: Path) -> float:
    """Size of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def _artifacts(store: Store) -> Iterator[Path]:
    """Whatever lies in the folder of a stage, also of one that is not installed here."""
    known = list(plugins.stages())
    folders = [f for f in store.root.glob("[!.]*") if f.is_dir()]
    order = {name: i for i, name in enumerate(known)}
    for folder in sorted(folders, key=lambda f: (order.get(f.name, len(known)), f.name)):
        yield from sorted(path for path in folder.glob("*") if path.is_dir())


def _digest(folder: Path) -> str:
    return folder.name.rpartition("-")[2]
