"""Results that ship: the records of studies that were computed elsewhere, to be read only.

A shelf holds records, metrics and provenance, and no tensors. It lies behind `Study.record` and not
in the store: a record without its tensors must never pass for something that others can be computed
from. So a study whose results ship can be shown on any machine, and is computed there as if they
did not.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rebasin_utils.errors import InputError
from rebasin_utils.files import replace_synced
from rebasin_utils.nets.devices import machine
from rebasin_utils.study.plan import Plan
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.store import Key, Store

#: Where the package keeps what it ships, a file a preset.
FOLDER = Path(__file__).parent / "shipped"

#: What a record has in a store and does not need on a shelf.
_LEFT_OUT = ("settings", "parents", "sha256", "record_sha256")


@dataclass(frozen=True)
class Shelf:
    """Records by the digests of their keys. about: of every file, what it says of itself."""

    records: Mapping[str, dict[str, Any]]
    about: tuple[dict[str, Any], ...]

    def record(self, key: Key) -> dict[str, Any] | None:
        """The record, with `shipped`, the preset whose file it is from; None when it has none."""
        return self.records.get(key.digest)


@dataclass(frozen=True)
class Exported:
    """What was written: the file, and how many of the studies' artifacts it holds and lacks."""

    path: Path
    held: int
    lacking: int


@cache
def package_shelf() -> Shelf:
    """What ships with the package."""
    return read(sorted(FOLDER.glob("*.json.gz")))


def read(files: Iterable[Path]) -> Shelf:
    """The records of several files.

    Raises:
        InputError: when a file is none that `export` wrote.
    """
    records: dict[str, dict[str, Any]] = {}
    about = []
    for file in files:
        content = _content(file)
        about.append({name: value for name, value in content.items() if name != "records"})
        for path, record in content["records"].items():
            records[path.rpartition("-")[2]] = {**record, "shipped": content["preset"]}
    return Shelf(records, tuple(about))


def export(
    store: Store, preset: str, studies: Iterable[Settings], path: Path, command: str
) -> Exported:
    """Write the records that a store holds of a preset's studies as one file.

    What the file holds already and the store lacks stays, if it is part of the studies, so that
    several machines can add their pairs. The same records make the same bytes.

    Args:
        command: that computes these studies, for the reader.

    Raises:
        InputError: when neither holds a record of them, or the file is none of these.
    """
    studies = list(studies)
    before = _content(path)["records"] if path.exists() else {}
    records, lacking = {}, 0
    for settings in studies:
        for node in Plan(settings).all_nodes():
            record = store.record(node.key)
            if record is None:
                record = before.get(node.key.path)
            if record is None:
                lacking += 1
            else:
                records[node.key.path] = {n: v for n, v in record.items() if n not in _LEFT_OUT}
    if not records:
        raise InputError(f"store = {store.root}: holds nothing of the preset {preset}")
    content = {
        "preset": preset,
        "command": command,
        "exported_on": machine(),
        "studies": [settings.model_dump(mode="json") for settings in studies],
        "records": records,
    }
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_synced(path, gzip.compress(text.encode(), mtime=0))
    return Exported(path, len(records), lacking)


def _content(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(gzip.decompress(file.read_bytes()))
        content["preset"], content["records"].items()
    except (OSError, EOFError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise InputError(f"shelf = {file}: no file of results ({error})") from None
    return content
