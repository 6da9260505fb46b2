"""Nets that were trained elsewhere: read from the user's files instead of trained (`dense.from`).

Their content enters the keys, and never their paths.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from rebasin_utils.errors import InputError
from rebasin_utils.nets import checkpoints, fingerprints
from rebasin_utils.nets.masks import State
from rebasin_utils.nets.sources import data_root
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stage import Context, Node

_ROLES = ("A", "B")


def are(settings: Settings) -> bool:
    """Whether the nets of these settings come from files."""
    return settings.dense.from_ is not None


def check(settings: Settings) -> None:
    """Refuse patterns of files that are no two nets a pair.

    Raises:
        InputError: when several pairs have one file, or early states come without their nets.
    """
    dense = settings.dense
    if dense.early and not dense.from_:
        raise InputError(f"dense.early = {list(dense.early)}: goes with dense.from only")
    for name, files in (("dense.from", dense.from_), ("dense.early", dense.early)):
        if files and files[0] == files[1]:
            raise InputError(f"{name} = {list(files)}: A and B must be two nets")
        if files and settings.seeds > 1 and not all("{pair}" in file for file in files):
            raise InputError(
                f"{name} = {list(files)}: {settings.seeds} pairs need files of their own; write "
                "{pair} where the number of the pair stands, or set seeds to 1"
            )


def file_of(settings: Settings, role: str, seed: int, epoch: int | None = None) -> Path:
    """Where a net lies: trained, or as it was after `epoch` epochs.

    Raises:
        InputError: when nothing says where a state lies that is needed, or one file stands for the
            states of several epochs.
    """
    dense = settings.dense
    files = dense.from_ if epoch is None else dense.early
    if files is None:
        raise InputError(
            f"dense.early is not given: runs start from the nets as they were after {epoch} epochs,"
            " which cannot be had from dense.from; give two files, or ask for no such runs "
            "(sparse.rewind_epochs=[])"
        )
    pattern = files[_ROLES.index(role)]
    epochs = {settings.saved_epoch(k) for k in settings.sparse.rewind_epochs}
    if epoch is not None and len(epochs) > 1 and "{epoch}" not in pattern:
        raise InputError(
            f"dense.early = {list(files)}: runs start after {len(epochs)} numbers of epochs; write "
            "{epoch} where the number stands"
        )
    return Path(pattern.replace("{pair}", str(seed)).replace("{epoch}", str(epoch))).expanduser()


def facts(settings: Settings, role: str, seed: int, epoch: int | None = None) -> dict[str, Any]:
    """What a run depends on that starts from such a net.

    Raises:
        InputError: when its file is not there.
    """
    path = file_of(settings, role, seed, epoch)
    return {"content": _fingerprint(path, int(time.monotonic() // 2))}


def states(run: Context, nodes: Sequence[Node]) -> Iterator[State]:
    """The states of nets, or of early ones, as their files have them.

    Raises:
        InputError: what `checkpoints.read` refuses.
    """
    for node in nodes:
        at = node.at
        path = file_of(run.settings, at["role"], node.seed, at.get("epoch"))
        yield checkpoints.read(path, run.model)


@lru_cache(maxsize=256)
def _fingerprint(path: Path, moment: int) -> str:
    """moment: two seconds, for the content may change."""
    try:
        return fingerprints.of_files(path, {"": str(path)}, data_root() / "own" / "fingerprints")
    except OSError as error:
        raise InputError(
            f"checkpoint = {str(path)!r}: cannot be read ({error.strerror})"
        ) from error
