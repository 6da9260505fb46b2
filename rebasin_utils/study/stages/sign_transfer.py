"""What of A's ticket is put on B, and how B trains with it (Oh et al. 2025; both papers joined).

B is an init of its own, or a net as it was after k epochs. `kind` says what is carried over:

    mask               where weights are
    random_mask        no more than how many there are in every layer
    signs              the mask and the signs, as |w| · s
    shuffled           the mask, every layer's signs dealt anew
    signs+gamma, signs+beta, signs+norms    norm layers' parameters with them
    signs+classifier   the signs of the classifier and of biases, too
    solution           everything: the ticket itself, trained on

and `address` how its units are named: as they are (""), by π ("pi"), which matches A to B, or by a
random permutation ("random"). With owner B the ticket is B's own.

Metrics of the trained net, its batch norms' statistics recomputed; `accuracy_before` any training;
`agreement`, the share of the kept weights whose signs in B are those of the ticket, both before
anything is carried over; `negative_gammas` of the ticket.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import pandas as pd
import torch

from rebasin_utils.nets import masks
from rebasin_utils.nets.masks import Mask, State
from rebasin_utils.study.parts import Procedure
from rebasin_utils.study.seeds import derive_seed
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stage import Context, Made, Node, Reader, Stage, chunks
from rebasin_utils.study.stages import dense, matching, tickets
from rebasin_utils.study.stages.merged import with_statistics
from rebasin_utils.study.stages.trained import made, tested
from rebasin_utils.symmetry.permutation import Permutation, permute, random_permutation
from rebasin_utils.training import norms, signs
from rebasin_utils.training.train import TOGETHER, Job

NORMS = {"signs+gamma": (".weight",), "signs+beta": (".bias",), "signs+norms": (".weight", ".bias")}
WITH_SIGNS = ("signs", "shuffled", *NORMS, "signs+classifier")
KINDS = ("mask", "random_mask", *WITH_SIGNS, "solution")


class SignTransfer(Stage):
    name = "sign_transfer"
    keeps = ("final",)

    def wanted(self, settings: Settings) -> Iterable[Node]:
        for seed in settings.pairs:
            for number in settings.signs.rounds:
                whole = number == settings.signs.rounds[-1]
                yield from carried(settings, seed, number, whole)
                if whole:
                    yield from addressed(settings, seed, number)

    def compute(self, run: Context, nodes: Sequence[Node]) -> Iterator[Made]:
        starts = [start_of(run, node) for node in nodes]
        jobs = [
            Job(state, derive_seed("sign_transfer", node.seed, node.at.get("order", 0)), mask)
            for node, (state, mask, _) in zip(nodes, starts, strict=True)
        ]
        before = _accuracies(run, starts)
        done = [
            replace(trained, state=with_statistics(run, trained.state))
            for trained in run.train(nodes, jobs, tickets.transfer_recipe(run.settings))
        ]
        for node, (_, mask, agreement), trained, test, accuracy in zip(
            nodes, starts, done, tested(run, done), before, strict=True
        ):
            of_node = made(run, node, trained, test, mask)
            of_node.record["metrics"] |= {
                "accuracy_before": accuracy,
                "agreement": agreement,
                "negative_gammas": signs.negative_gammas(run.model, run.state(_ticket(node))),
            }
            yield of_node

    def alike(self, node: Node) -> Hashable:
        return "all"

    def lots(self, nodes: Sequence[Node], together: bool) -> list[list[Node]]:
        ordered = sorted(nodes, key=lambda n: n.seed)
        return [
            lot
            for _, of_pair in groupby(ordered, key=lambda n: n.seed)
            for lot in chunks(of_pair, TOGETHER if together else 1)
        ]


SIGN_TRANSFER = SignTransfer()


def carried(settings: Settings, seed: int, number: int, whole: bool) -> Iterator[Node]:
    """What is carried to B's init, ticket by ticket; `whole` with every kind and control."""
    asked = settings.signs.procedures
    few = ("mask", "signs", "solution")
    of_norms = tuple(NORMS) if "aws" in asked else ()
    kinds = {"lrr": few, "aws": few}
    if whole:
        kinds["lrr"] = ("random_mask", *few, "shuffled", "signs+classifier", *of_norms)
        kinds["aws"] = (*few, *of_norms[-1:])
        kinds["finetuning"] = ("mask", "solution")
    for procedure in (p for p in asked if p in kinds):
        for kind in kinds[procedure]:
            yield one(settings, kind, procedure, seed, number)


def addressed(settings: Settings, seed: int, number: int) -> Iterator[Node]:
    """LRR's mask and signs on B at every rewind epoch, under every address."""
    for k in settings.signs.rewind_epochs:
        for kind, address in JOINED:
            yield one(settings, kind, "lrr", seed, number, address=address, rewind_epoch=k)
        yield one(settings, "mask", "lrr", seed, number, owner="B", rewind_epoch=k)


#: What the two papers say of together: what is carried, and under which names.
JOINED = (
    ("mask", ""),
    ("mask", "pi"),
    ("signs", ""),
    ("signs", "pi"),
    ("signs", "random"),
    ("shuffled", ""),
)


def one(
    settings: Settings,
    kind: str,
    procedure: Procedure,
    seed: int,
    number: int,
    *,
    address: str = "",
    rewind_epoch: int = 0,
    owner: str = "A",
    net: tuple[str, int] | None = None,
    order: int = 0,
) -> Node:
    """One transfer.

    Args:
        kind, address, owner: see above. number: of the ticket's last round.
        net: role and seed of the net to put it on, if not the pair's B.
        order: another order of the data than 0.
    """
    role, of = net or ("B", seed)
    ticket = tickets.after(settings, procedure, owner, seed, number)
    at = {"kind": kind, "procedure": procedure, "seed": seed, "round": number}
    label = f"{kind}-{procedure}-round{number}-seed{seed}"
    if kind == "solution":
        parents = (ticket,)
    else:
        parents = (dense.state_after(settings, role, of, rewind_epoch), ticket)
        at["rewind_epoch"] = rewind_epoch
        label += f"-k{rewind_epoch}"
    facts = {"kind": kind, "recipe": tickets.transfer_recipe(settings).facts(), "seed": seed}
    other = (("address", address, ""), ("owner", owner, "A"), ("order", order, 0))
    for name, value, usual in other:
        if value != usual:
            facts[name] = at[name] = value
            label += f"-{name}-{value}"
    if net is not None:
        at["net"] = f"{role}{of}"
        label += f"-on-{role}{of}"
    if address == "pi":
        parents += (matching.of_pair(settings, seed),)
    if settings.signs.rescale and kind != "solution":
        facts["rescale"] = True
    epochs = tickets.transfer_recipe(settings).epochs
    return SIGN_TRANSFER.node(settings, label, at, facts, parents, epochs)


def moves(run: Reader, node: Node) -> Permutation | None:
    """The permutation of the ticket's units that a transfer's address stands for."""
    address = node.at.get("address", "")
    if address == "pi":
        return run.tensors(node.parents[2])
    if address == "random":
        generator = torch.Generator().manual_seed(derive_seed("address", node.seed))
        return random_permutation(run.spec, generator)
    return None


def start_of(run: Reader, node: Node) -> tuple[State, Mask, float]:
    """What a transfer starts from, its mask, and the agreement of signs before the transfer."""
    kind, ticket = node.at["kind"], _ticket(node)
    state, mask = run.state(ticket), run.state(ticket, "mask")
    state = masks.apply(mask, signs.canonical(run.model, state))
    if kind == "solution":
        return state, mask, 1.0
    if (permutation := moves(run, node)) is not None:
        state, mask = (permute(run.spec, permutation, values) for values in (state, mask))
    start = run.state(node.parents[0])
    agreement = signs.agreement(start, state, mask)
    generator = torch.Generator().manual_seed(derive_seed(kind, node.seed))
    if kind == "random_mask":
        mask = masks.random_layerwise(mask, generator)
    if run.settings.signs.rescale:
        start = masks.rescaled(mask, start)
    if kind in WITH_SIGNS:
        carried_over = signs.of(state, mask)
        if kind == "shuffled":
            carried_over = signs.shuffled(carried_over, generator)
        if kind == "signs+classifier":
            carried_over |= signs.of_classifier(run.model, state)
            carried_over |= signs.of_biases(run.model, state, mask)
        start = signs.transfer(start, carried_over)
        ends = NORMS.get(kind, ())
        start |= {n: state[n].clone() for n in norms.inits(run.model) if n.endswith(ends) and ends}
    return masks.apply(mask, start), mask, agreement


def _ticket(node: Node) -> Node:
    return node.parents[0] if node.at["kind"] == "solution" else node.parents[1]


def _accuracies(run: Context, starts: Sequence[tuple[State, Mask, float]]) -> list[float]:
    """Accuracy before any training."""
    states = [with_statistics(run, state) for state, _, _ in starts]
    return [measured.accuracy for measured in run.evaluate(states)]


def table(study: Reader) -> pd.DataFrame:
    """Every transfer.

    Returns:
        procedure, round, kind, address, owner, rewind_epoch, order, net, seed, kept (share of the
        pruned layers' weights), accuracy and before (%, after training and before), agreement,
        negative_gammas (share of the ticket's).
    """
    rows = []
    for node in study.nodes("sign_transfer"):
        metrics, at = study.record(node)["metrics"], node.at
        rows.append(
            {
                "procedure": at["procedure"],
                "round": at["round"],
                "kind": at["kind"],
                "address": at.get("address", ""),
                "owner": at.get("owner", "A"),
                "rewind_epoch": at.get("rewind_epoch", 0),
                "order": at.get("order", 0),
                "net": at.get("net", ""),
                "seed": node.seed,
                "kept": 1 - metrics["prunable_sparsity"],
                "accuracy": 100 * metrics["test_accuracy"],
                "before": 100 * metrics["accuracy_before"],
                "agreement": metrics["agreement"],
                "negative_gammas": metrics["negative_gammas"],
            }
        )
    return pd.DataFrame(rows)
