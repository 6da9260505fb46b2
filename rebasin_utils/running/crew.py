"""Studies computed by the ranks that `torchrun` has started, all of them at every run.

The first rank computes, as if it were alone; the others help it wherever it trains, evaluates or
matches (`study.together`), and never look into the store.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rebasin_utils.errors import InputError, RanksLost
from rebasin_utils.study import together
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.study import Study
from rebasin_utils.training.parallel import require_parts
from rebasin_utils.training.ranks import Ranks, Stopped, joined, started


def follows() -> bool:
    """Whether this process is a rank that another one leads."""
    return started() and int(os.environ["RANK"]) > 0


def refuse_more_processes(workers: int | None, cluster: str | Path | None) -> None:
    """Refuse what would start processes besides the ranks."""
    given = {"workers": workers, "cluster": None if cluster == "local" else cluster}
    for name, value in given.items():
        if value is not None:
            raise InputError(
                f"{name} = {value!r}: does not go with torchrun, whose {os.environ['WORLD_SIZE']} "
                "processes train every run together"
            )


def compute(studies: Sequence[Study], work: Callable[[], int]) -> int:
    """Compute studies with all ranks; what `work` returns on the first, 0 on the others.

    Raises:
        InputError: when the ranks have different settings or data, or cannot divide a batch.
        RanksLost: when one of them failed.
    """
    with joined(studies[0].device) as (ranks, device):
        _refuse_differences(studies, ranks)
        for study in studies:
            _refuse_parts(study, ranks)
            study.ranks, study.device = ranks, device
        if not ranks.leads:
            known = {study.settings: study for study in studies}
            together.follow(ranks, lambda settings: _known(settings, known))
            return 0
        lost = False
        try:
            return work()
        except (RanksLost, Stopped):
            lost = True
            raise
        finally:
            if not lost:
                ranks.told(None)


def _known(text: str, known: dict[Settings, Study]) -> Study:
    """A study that the first rank computes; it may be on other data than those asked for."""
    settings = Settings.model_validate_json(text)
    if settings not in known:
        known[settings] = next(iter(known.values())).sibling(settings)
    return known[settings]


def _refuse_differences(studies: Sequence[Study], ranks: Ranks) -> None:
    """All ranks raise the same, so that none waits for another."""
    mine = [(s.settings.model_dump_json(), s.settings.data.facts()) for s in studies]
    first, *others = ranks.gathered(mine)
    for rank, theirs in enumerate(others, start=1):
        if theirs != first:
            alike = [settings for settings, _ in theirs] == [settings for settings, _ in first]
            what = "images" if alike else "settings"
            raise InputError(f"rank {rank} has other {what} than rank 0: start all ranks alike")


def _refuse_parts(study: Study, ranks: Ranks) -> None:
    for name in ("dense", "imp"):
        require_parts(getattr(study.settings, name), ranks.size, name)
