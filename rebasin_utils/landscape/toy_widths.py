"""One step up from two weights: a hidden layer of n units has n! equally good copies of itself.

Nets with one hidden layer learn a curve, y = sin(πx), from different inits. Every solution has a
copy for each of the n! orders of its units. So two trained nets are far apart mostly because their
units are in different orders: matched, they are closer, and the wider they are, the lower is the
barrier that is left between them (Entezari et al. 2022, Conjecture 1, here in miniature).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import permutations

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from rebasin_utils.errors import InputError
from rebasin_utils.landscape.interpolation import barrier, lerp
from rebasin_utils.nets.masks import State
from rebasin_utils.symmetry.permutation import permute, random_permutation
from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.symmetry.weight_matching import match_weights
from rebasin_utils.training.optimizers import Optimizer
from rebasin_utils.training.recipes import Recipe

WIDTHS = (2, 4, 8, 16, 32, 64)
#: How many copies are checked at most: all of them up to six units.
COPIES = math.factorial(6)
ALPHAS = [i / 20 for i in range(21)]

X = torch.linspace(-1, 1, 64, dtype=torch.float64)[:, None]
Y = torch.sin(torch.pi * X)


def network(width: int) -> nn.Sequential:
    """`width` GELU units with biases; input and output float64 [batch, 1]."""
    return nn.Sequential(
        nn.Linear(1, width, dtype=torch.float64),
        nn.GELU(),
        nn.Linear(width, 1, dtype=torch.float64),
    )


def losses(states: Sequence[State]) -> Tensor:
    """Mean squared error of every net, float64 [nets]; the nets have one width."""
    return _losses(_stack(states))


def train(width: int, runs: int, seed: int = 0, steps: int = 400, lr: float = 0.03) -> list[State]:
    """Nets trained by Adam on all data, each from torch's default init; all at once."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        nets = [network(width) for _ in range(runs)]
    stacked = _stack([net.state_dict() for net in nets])
    parameters = {name: p.requires_grad_() for name, p in stacked.items()}
    recipe = Recipe(steps, lr, weight_decay=0.0, schedule="constant", optimizer="adam")
    optimizer = Optimizer(recipe, parameters.values())
    for _ in range(steps):
        for p in parameters.values():
            p.grad = None
        _losses(parameters).sum().backward()
        optimizer.step(epoch=0)
    return [{name: p[i].detach().clone() for name, p in parameters.items()} for i in range(runs)]


def copies(spec: PermutationSpec, state: State, seed: int = 0) -> list[State]:
    """The copies of a net with its units in other orders: all n! up to six units, else a sample."""
    (group,) = spec.groups.values()
    if math.factorial(group.size) <= COPIES:
        orders = [{group.name: torch.tensor(p)} for p in permutations(range(group.size))]
    else:
        generator = torch.Generator().manual_seed(seed)
        orders = [random_permutation(spec, generator) for _ in range(COPIES)]
    return [permute(spec, order, state) for order in orders]


def compare(
    widths: Iterable[int] = WIDTHS, pairs: int = 6, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train pairs A, B of every width, check the copies of a net, and match A to B.

    Returns:
        One row per width: width, checked (copies), spread (largest relative difference of their
        losses), loss (mean of the trained nets).
        One row per point of every path: width, pair, path (unmatched, matched), distance (of its
        ends), alpha, loss.

    Raises:
        InputError: when a width is below 2, there is no width, or no pair.
    """
    widths = tuple(widths)
    if not widths or not all(isinstance(n, int) and n >= 2 for n in widths):
        raise InputError(f"widths = {widths!r}: must be whole numbers from 2 on")
    if not isinstance(pairs, int) or pairs < 1:
        raise InputError(f"pairs = {pairs!r}: must be a whole number above 0")
    nets, rows = [], []
    for width in widths:
        spec = PermutationSpec.trace(network(width), X)
        trained = train(width, 2 * pairs, seed)
        twins = losses(copies(spec, trained[0], seed))
        spread = float((twins.max() - twins.min()) / twins.mean())
        mean = float(losses(trained).mean())
        nets.append({"width": width, "checked": len(twins), "spread": spread, "loss": mean})
        for pair in range(pairs):
            a, b = trained[2 * pair : 2 * pair + 2]
            matched = permute(spec, match_weights(spec, a, b).permutation, a)
            for path, start in (("unmatched", a), ("matched", matched)):
                at = losses([lerp(start, b, alpha) for alpha in ALPHAS]).tolist()
                rows += [
                    {"width": width, "pair": pair, "path": path, "alpha": alpha, "loss": value}
                    | {"distance": _distance(start, b)}
                    for alpha, value in zip(ALPHAS, at, strict=True)
                ]
    return pd.DataFrame(nets), pd.DataFrame(rows)


def summary(nets: pd.DataFrame, paths: pd.DataFrame) -> pd.DataFrame:
    """One row per width for people: units, n!, copies checked, distances and barriers, means."""
    barriers = paths.groupby(["width", "path", "pair"])["loss"].agg(
        lambda values: barrier(list(values), ALPHAS)
    )
    barriers = barriers.groupby(["width", "path"]).mean().unstack()
    distances = paths.groupby(["width", "path"])["distance"].mean().unstack()
    return pd.DataFrame(
        {
            "units n": nets["width"],
            "copies n!": [_count(math.factorial(n)) for n in nets["width"]],
            "copies checked": nets["checked"],
            "their losses differ by": [f"{spread:.0e}" for spread in nets["spread"]],
            "distance A to B": distances["unmatched"].to_numpy(),
            "distance π(A) to B": distances["matched"].to_numpy(),
            "barrier A to B": barriers["unmatched"].to_numpy(),
            "barrier π(A) to B": barriers["matched"].to_numpy(),
        }
    )


def _count(number: int) -> str:
    return f"{number:,}" if number < 1e6 else f"{number:.1e}"


def _distance(first: State, second: State) -> float:
    """Euclidean, between all weights and biases."""
    return math.sqrt(sum(float((first[n] - second[n]).square().sum()) for n in first))


def _losses(stacked: dict[str, Tensor]) -> Tensor:
    """What `network` computes, of all nets at once; `stacked` as `_stack` gives them."""
    hidden = gelu(stacked["0.weight"] @ X.T + stacked["0.bias"][:, :, None])
    outputs = stacked["2.weight"] @ hidden + stacked["2.bias"][:, :, None]
    return (outputs - Y.T).square().mean((1, 2))


def _stack(states: Sequence[State]) -> dict[str, Tensor]:
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}
