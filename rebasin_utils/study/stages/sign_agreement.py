"""How often B's weights have the signs of A's ticket, epoch by epoch of B's dense training.

The mask that A's ticket addresses to B says nothing of signs; what it finds there are B's own.
Metrics: `agreements`, each with epoch, address ("" or "pi") and agreement, a share of the kept
weights; by chance a half.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

from rebasin_utils.nets import masks
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stage import Context, Made, Node, Reader, Stage
from rebasin_utils.study.stages import dense, matching, tickets
from rebasin_utils.symmetry.permutation import permute
from rebasin_utils.training import signs


class SignAgreement(Stage):
    name = "sign_agreement"

    def wanted(self, settings: Settings) -> Iterable[Node]:
        if settings.signs.rounds and settings.signs.agreement_epochs:
            yield from (of_pair(settings, seed) for seed in settings.pairs)

    def compute(self, run: Context, nodes: Sequence[Node]) -> Iterator[Made]:
        for node in nodes:
            begin = time.monotonic()
            ticket, matched, *states = node.parents
            mask = run.state(ticket, "mask")
            state = masks.apply(mask, signs.canonical(run.model, run.state(ticket)))
            permutation = run.tensors(matched)
            moved = {
                "": (state, mask),
                "pi": tuple(permute(run.spec, permutation, v) for v in (state, mask)),
            }
            found = [
                {
                    "epoch": epoch,
                    "address": address,
                    "agreement": signs.agreement(run.state(parent), *signed),
                }
                for epoch, parent in zip(run.settings.signs.agreement_epochs, states, strict=True)
                for address, signed in moved.items()
            ]
            metrics = {"agreements": found}
            yield Made(node, {"metrics": metrics, "seconds": time.monotonic() - begin})


SIGN_AGREEMENT = SignAgreement()


def of_pair(settings: Settings, seed: int) -> Node:
    """The agreement of B's signs with those of A's LRR ticket after the last of the rounds."""
    epochs = settings.signs.agreement_epochs
    ticket = tickets.after(settings, "lrr", "A", seed, settings.signs.rounds[-1])
    states = (dense.state_after(settings, "B", seed, epoch) for epoch in epochs)
    parents = (ticket, matching.of_pair(settings, seed), *states)
    at, facts = {"seed": seed}, {"epochs": list(epochs)}
    return SIGN_AGREEMENT.node(settings, f"seed{seed}", at, facts, parents)


def table(study: Reader) -> pd.DataFrame:
    """Agreement of signs: seed, epoch, address ("" or "pi"), agreement."""
    rows = [
        {"seed": node.seed, **each}
        for node in study.nodes("sign_agreement")
        for each in study.record(node)["metrics"]["agreements"]
    ]
    return pd.DataFrame(rows)
