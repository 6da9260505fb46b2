"""Stores of several machines: merged, and held against each other; and what is taken away."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pandas as pd
from torch import Tensor

from rebasin_utils.errors import InputError
from rebasin_utils.files import sync_folder
from rebasin_utils.nets.checkpoints import Kind
from rebasin_utils.study import inventory
from rebasin_utils.study.plan import Plan
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.store import RECORD, TENSORS, Key, Store
from rebasin_utils.training import signs

#: Another processor rounds otherwise, and training carries it on: two machines that compute one
#: study agree to about so many points of accuracy a net.
TOLERANCE = 0.25

#: Where a record is read: a store's `record`, or a shelf's.
Records = Callable[[Key], dict | None]


def take_over(store: Store, other: Store) -> Iterator[tuple[str, str]]:
    """Copy into a store, with their tensors, the artifacts that it lacks and another has.

    Each is copied whole or not at all, and checked before; what the store has stays as it is.

    Yields:
        (path, "") of each that was copied, and (path, what is wrong with it) of each that is
        damaged there and was left out.
    """
    store.prepare()
    for entry in inventory.entries(other):
        target = store.root / entry.path
        if target.is_dir() and store.why_damaged(entry.path) is None:
            continue
        if (why := other.why_damaged(entry.path)) is not None:
            yield entry.path, why
            continue
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=store.root))
        try:
            for name in (TENSORS, RECORD):
                shutil.copyfile(other.root / entry.path / name, temporary / name)
            store.adopt(entry.path, temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_folder(target.parent)
        yield entry.path, ""


def compared(studies: Iterable[Settings], first: Records, second: Records) -> pd.DataFrame:
    """The test accuracies of the nets that two places hold of some studies.

    Returns:
        a row a study and stage: study, stage, nets, and in percentage points the mean difference
        (second − first), the mean absolute and the largest absolute difference.
    """
    rows = []
    for settings in studies:
        for node in Plan(settings).all_nodes():
            both = [place(node.key) for place in (first, second)]
            if all(record and "test_accuracy" in record.get("metrics", {}) for record in both):
                one, other = (100 * record["metrics"]["test_accuracy"] for record in both)
                rows.append((settings.name, node.stage, other - one))
    each = pd.DataFrame(rows, columns=["study", "stage", "difference"])
    table = each.groupby(["study", "stage"], sort=False)["difference"].agg(
        nets="count",
        mean="mean",
        mean_absolute=lambda d: d.abs().mean(),
        largest=lambda d: d.abs().max(),
    )
    return table.reset_index()


def part_of(store: Store, path: str, part: str | None = None) -> tuple[dict[str, Tensor], Kind]:
    """A net, a mask, a signed mask or a permutation that an artifact holds, to be taken away.

    Args:
        path: of the artifact, as in the column `artifact` of the results.
        part: "net", "mask" or "signs", the signed mask of a ticket; None: what there is, the net
            first.

    Raises:
        InputError: when the store has no such artifact, or the artifact no such part.
    """
    tensors = store.tensors(Key.at(path))
    if tensors is None:
        raise InputError(
            f"artifact = {path!r}: the store {store.root} has no such one; `rebasin results "
            "--format csv` has them in its column artifact, `rebasin store list --all` all of them"
        )
    if tensors and not any("/" in name for name in tensors):
        there: dict[str, tuple[dict[str, Tensor], Kind]] = {"permutation": (tensors, "permutation")}
    else:
        there = {
            name: (_under(stored, tensors), name)
            for name, stored in (("net", "final"), ("mask", "mask"))
            if _under(stored, tensors)
        }
    if not there:
        raise InputError(f"artifact = {path!r}: it holds a record and no tensors")
    part = part or next(iter(there))
    if part == "signs" and len(there) == 2:
        return signs.of(there["net"][0], there["mask"][0]), "signed mask"
    if part not in there:
        has = [*there, "signs"] if len(there) == 2 else there
        raise InputError(f"part = {part!r}: {path} has {', '.join(has)}")
    return there[part]


def _under(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{part}/"
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
