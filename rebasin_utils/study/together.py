"""What several ranks do together for a study: they train, evaluate and match.

The first rank computes the study. It alone knows the store: it reads, decides, locks and writes,
and tells the others what to do, who `follow` until there is nothing left. Without ranks a process
does the same alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rebasin_utils.nets.masks import State
from rebasin_utils.study.stage import Context
from rebasin_utils.study.stages import matching
from rebasin_utils.symmetry.matching import Matching, match_activations
from rebasin_utils.training import evaluate as evaluation
from rebasin_utils.training.evaluate import Metrics
from rebasin_utils.training.ranks import Ranks
from rebasin_utils.training.recipes import Recipe
from rebasin_utils.training.train import Job, Trained, train_many


def train(
    study: Context,
    jobs: Sequence[Job],
    recipe: Recipe,
    until: int | None,
    progress: Callable[[int], None] = lambda epochs: None,
) -> list[Trained]:
    """`train_many` on the study's training images."""
    return train_many(
        study.model,
        jobs,
        recipe,
        study.split("train"),
        augment=study.settings.data.augment,
        until=until,
        progress=progress,
        ranks=study.ranks,
    )


def evaluate(study: Context, states: Sequence[State]) -> list[Metrics]:
    """Accuracy and loss of nets on the test images."""
    return evaluation.evaluate(study.model, states, study.split("test"), ranks=study.ranks)


def match(study: Context, moving: State, reference: State, images: int | None) -> Matching:
    """π of the first net's units to the second's, on `matching.batches`."""
    return match_activations(
        study.spec,
        study.net_of(moving),
        study.net_of(reference),
        matching.batches(study, images, study.ranks),
        objective=study.settings.matching.objective,
        std=study.settings.as_released.match_std,
        group=None if study.ranks is None else study.ranks.group,
    )


_DEEDS: dict[str, Callable[..., Any]] = {"train": train, "evaluate": evaluate, "match": match}


def do(study: Context, deed: str, *arguments: Any, **mine: Any) -> Any:
    """Do one of the above with all ranks, or alone where there are none.

    mine: what the others do without, such as a progress bar.
    """
    if study.ranks is None:
        return _DEEDS[deed](study, *arguments, **mine)
    with study.ranks.together():
        study.ranks.told((study.settings.model_dump_json(), deed, arguments))
        return _DEEDS[deed](study, *arguments, **mine)


def follow(ranks: Ranks, study_of: Callable[[str], Context]) -> None:
    """Do what the first rank says, until it says that all is done.

    study_of: the study with these settings, as JSON.
    """
    with ranks.together():
        while (told := ranks.told()) is not None:
            settings, deed, arguments = told
            _DEEDS[deed](study_of(settings), *arguments)
