"""A network with two weights, small enough to see its whole loss landscape (the paper's Figure 1).

    f(x) = φ(w₁x) + φ(w₂x),    φ(z) = z + z²,    loss(w) = mean over x of (f(x) - y(x))²

The data y come from the network with the weights `TARGET`, one large and one small. Swapping the
two hidden units swaps the weights and leaves f as it is, so the landscape is its own mirror image
in the diagonal. φ is a parabola because then f depends on w₁ + w₂ and w₁² + w₂² alone, and the loss
has exactly two minima: the two places where a line meets a circle, `TARGET` and its mirror image.
(The only other critical point is a saddle between them, on the diagonal.)

Everything here is computed as for a large network: gradients by autograd, the mask by global
magnitude pruning, π by weight matching on the traced spec.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from rebasin_utils.errors import InputError
from rebasin_utils.nets.masks import Mask, State, dense_mask, global_magnitude
from rebasin_utils.symmetry.permutation import permute
from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.symmetry.weight_matching import match_weights

#: The weights that made the data.
TARGET = (2.0, -0.5)
#: The part of the plane that is drawn, and in which inits lie.
LOW, HIGH = -2.2, 3.0
#: Learning rates; even with the largest, no step from anywhere in the plane goes up.
MIN_LR, MAX_LR = 0.005, 0.1
MAX_STEPS = 300
MASKS = ("smaller weight of A", "w₁", "w₂")
#: What a reader sees in place of a run's name.
NAMES = {
    "A": "A, dense",
    "B": "B, dense",
    "lth": "LTH: A with its mask",
    "naive": "naive: B with A's mask",
    "permuted": "permuted: B with π(mask)",
}
HIDDEN = "hidden.weight"


def activation(z: Tensor) -> Tensor:
    """φ(z) = z + z², what a GELU looks like near zero, up to scale."""
    return z + z * z


class TwoWeights(nn.Module):
    """One input, two hidden units without bias, output weights that stay 1.

    Input float64 [batch, 1], output [batch, 1].
    """

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(1, 2, bias=False, dtype=torch.float64)
        self.out = nn.Linear(2, 1, bias=False, dtype=torch.float64)
        nn.init.ones_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(activation(self.hidden(x)))


X = torch.linspace(-1, 1, 41, dtype=torch.float64)
_SQUARE, _FOURTH = ((X**power).mean() for power in (2, 4))


def loss(weights: Tensor) -> Tensor:
    """Mean squared error over `X` of the networks with these weights: [..., 2] -> [...].

    f - y is (w₁ + w₂ - Σw) x + (w₁² + w₂² - Σw²) x², with the sums of `TARGET`. `X` lies alike on
    both sides of zero, so the two terms do not mix: their squares add up.
    """
    off_the_line = weights.sum(-1) - sum(TARGET)
    off_the_circle = weights.square().sum(-1) - sum(w * w for w in TARGET)
    return _SQUARE * off_the_line.square() + _FOURTH * off_the_circle.square()


@cache
def landscape(points: int = 79) -> tuple[np.ndarray, np.ndarray]:
    """The loss on a grid over the plane.

    Returns:
        The axis, float64 [points], the same for w₁ and w₂; the loss, float64 [points of w₂, points
        of w₁].
    """
    axis = torch.linspace(LOW, HIGH, points, dtype=torch.float64)
    w2, w1 = torch.meshgrid(axis, axis, indexing="ij")
    return axis.numpy(), loss(torch.stack([w1, w2], dim=-1)).numpy()


def descend(starts: Tensor, masks: Tensor, lr: float, steps: int) -> Tensor:
    """Gradient descent of several runs at once, with the masked weights held at zero.

    Args:
        starts: float64 [runs, 2]. masks: bool [runs, 2], True is kept.

    Returns:
        The weights before every step and after the last, [runs, steps + 1, 2].
    """
    path = [starts.masked_fill(~masks, 0)]
    for _ in range(steps):
        weights = path[-1].requires_grad_()
        (gradient,) = torch.autograd.grad(loss(weights).sum(), weights)
        path.append((weights.detach() - lr * gradient).masked_fill(~masks, 0))
    return torch.stack([weights.detach() for weights in path], dim=1)


@dataclass(frozen=True)
class Setup:
    """Where A and B start, which weight is pruned, and how long descent goes on.

    a1, a2, b1, b2: the inits (w₁, w₂) of A and B, within the plane that is drawn.
    prune: "smaller weight of A" is magnitude pruning of the trained A; "w₁", "w₂" name the weight.
    """

    a1: float = 0.8
    a2: float = -1.9
    b1: float = -0.9
    b2: float = 0.6
    prune: str = MASKS[0]
    lr: float = 0.05
    steps: int = 100

    def __post_init__(self) -> None:
        for name in ("a1", "a2", "b1", "b2"):
            _within(name, getattr(self, name), LOW, HIGH)
        _within("lr", self.lr, MIN_LR, MAX_LR)
        _within("steps", self.steps, 1, MAX_STEPS)
        if self.steps != int(self.steps):
            raise InputError(f"steps = {self.steps!r}: must be a whole number")
        if self.prune not in MASKS:
            raise InputError(f"prune = {self.prune!r}: choose one of {', '.join(MASKS)}")


@dataclass(frozen=True, eq=False)
class Run:
    """One descent: float64 [steps + 1, 2] weights, [steps + 1] losses; the init before masking."""

    method: str
    init: np.ndarray
    mask: np.ndarray
    path: np.ndarray
    losses: np.ndarray

    @property
    def end(self) -> float:
        """The loss that is left."""
        return float(self.losses[-1])


@dataclass(frozen=True, eq=False)
class Story:
    """The five descents of a setup, by name: A, B (dense), lth, naive, permuted.

    swapped: whether π, matched on the trained A and B, exchanges the two units.
    pruned_loss: of the trained A with its mask, before it is trained again.
    """

    setup: Setup
    runs: dict[str, Run]
    swapped: bool
    pruned_loss: float

    def summary(self) -> pd.DataFrame:
        """One row per run, for people: where it starts and ends, and the loss there."""
        rows = [
            {
                "run": NAMES[name],
                "starts at": "({:.2f}, {:.2f})".format(*run.path[0]),
                "with loss": run.losses[0],
                "ends at": "({:.2f}, {:.2f})".format(*run.path[-1]),
                "with the loss": run.end,
            }
            for name, run in self.runs.items()
        ]
        return pd.DataFrame(rows)

    def table(self) -> pd.DataFrame:
        """One row per run and step: run, step, w1, w2, loss."""
        parts = [
            pd.DataFrame(
                {
                    "run": name,
                    "step": range(len(run.path)),
                    "w1": run.path[:, 0],
                    "w2": run.path[:, 1],
                    "loss": run.losses,
                }
            )
            for name, run in self.runs.items()
        ]
        return pd.concat(parts, ignore_index=True)


def tell(setup: Setup) -> Story:
    """Train A and B, prune A, match the two, and train the three sparse runs."""
    trained = _train_all(setup)
    a, b = (trained[net, (True, True)] for net in "AB")
    mask = _mask(setup, a)
    pi = match_weights(_spec(), _trained(a), _trained(b)).permutation
    moved = permute(_spec(), pi, mask)
    wanted = {"lth": ("A", mask), "naive": ("B", mask), "permuted": ("B", moved)}
    sparse = {m: replace(trained[net, _pair(kept)], method=m) for m, (net, kept) in wanted.items()}
    pruned = torch.from_numpy(a.path[-1]) * mask[HIDDEN][:, 0]
    swapped = bool(pi["hidden"][0] == 1)
    return Story(setup, {"A": a, "B": b, **sparse}, swapped, float(loss(pruned)))


def _train_all(setup: Setup) -> dict[tuple[str, tuple[bool, bool]], Run]:
    """A and B, dense and with either weight pruned: (net, its mask) -> the run.

    More than a story tells, but in a single descent: its steps are what takes time.
    """
    inits = {"A": (setup.a1, setup.a2), "B": (setup.b1, setup.b2)}
    runs = list(product(inits, ((True, True), (True, False), (False, True))))
    starts = torch.tensor([inits[net] for net, _ in runs], dtype=torch.float64)
    kept = torch.tensor([mask for _, mask in runs])
    paths = descend(starts, kept, setup.lr, setup.steps)
    arrays = (starts.numpy(), kept.numpy(), paths.numpy(), loss(paths).numpy())
    each = zip(*arrays, strict=True)
    return {run: Run("dense", *values) for run, values in zip(runs, each, strict=True)}


def _mask(setup: Setup, trained: Run) -> Mask:
    if setup.prune == MASKS[0]:
        state = _trained(trained)
        return global_magnitude(state, dense_mask(state, (HIDDEN,)), keep=1)
    return {HIDDEN: torch.tensor([[setup.prune != name] for name in MASKS[1:]])}


@cache
def _spec() -> PermutationSpec:
    return PermutationSpec.trace(TwoWeights(), X[:, None])


def _trained(run: Run) -> State:
    return _state(torch.from_numpy(run.path[-1]))


def _state(weights: Tensor) -> State:
    return {HIDDEN: weights[:, None], "out.weight": torch.ones(1, 2, dtype=torch.float64)}


def _pair(mask: Mask) -> tuple[bool, bool]:
    return tuple(mask[HIDDEN][:, 0].tolist())


def _within(name: str, value: object, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        raise InputError(f"{name} = {value!r}: must be a number from {low:g} to {high:g}")
