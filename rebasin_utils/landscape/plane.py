"""The plane through three networks, on which the loss can be drawn as a map.

The origin is the first net, one unit to the right is the second, and the third lies one unit up:
Gram–Schmidt on the two differences, each direction measured in its own length (Garipov et al. 2018;
the paper's Figure 4b). The plane is spanned in the learnable parameters. Batch-norm statistics are
not coordinates: at every point they are to be recomputed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rebasin_utils.errors import InputError, require_state
from rebasin_utils.landscape.interpolation import BatchNormReset, has_batch_norm
from rebasin_utils.nets.data import Split, in_order
from rebasin_utils.nets.masks import State
from rebasin_utils.training.evaluate import Metrics, evaluate


@dataclass(frozen=True)
class Plane:
    """A plane in the space of a model's parameters.

    names: of the learnable tensors. base: the first net, whose buffers every point gets. right, up:
    the two directions, float64 vectors [parameters], orthogonal.
    """

    names: tuple[str, ...]
    base: State
    right: Tensor
    up: Tensor

    @classmethod
    def through(cls, model: nn.Module, origin: State, right: State, above: State) -> Plane:
        """The plane in which `origin` is (0, 0), `right` (1, 0) and `above` (x, 1) for some x.

        Raises:
            InputError: when one is no state, or the three nets lie on one line.
        """
        for what, state in (("origin", origin), ("right", right), ("above", above)):
            require_state(state, what)
        names = tuple(name for name, _ in model.named_parameters())
        base = _vector(origin, names)
        e1 = _vector(right, names) - base
        e2 = _vector(above, names) - base
        length = e2.norm()
        e2 = e2 - e1 * (e1 @ e2 / (e1 @ e1)) if e1.norm() > 0 else e2
        if e1.norm() == 0 or e2.norm() <= 1e-6 * length:
            raise InputError("the three nets lie on one line, so they span no plane")
        return cls(names, origin, e1, e2)

    def point(self, x: float, y: float) -> State:
        """The net at (x, y)."""
        vector = _vector(self.base, self.names) + x * self.right + y * self.up
        state, begin = {name: t.clone() for name, t in self.base.items()}, 0
        for name in self.names:
            size = state[name].numel()
            part = vector[begin : begin + size].view_as(state[name])
            state[name] = part.to(state[name].dtype)
            begin += size
        return state

    def coordinates(self, state: State) -> tuple[float, float, float]:
        """Where a net is seen from straight above: x, y, and its distance from the plane.

        The distance is that of the parameters, in units of `right`'s length.
        """
        offset = _vector(state, self.names) - _vector(self.base, self.names)
        x = (offset @ self.right / (self.right @ self.right)).item()
        y = (offset @ self.up / (self.up @ self.up)).item()
        beside = offset - x * self.right - y * self.up
        return x, y, (beside.norm() / self.right.norm()).item()


def survey(
    model: nn.Module,
    plane: Plane,
    xs: Sequence[float],
    ys: Sequence[float],
    images: Split,
    samples: Split,
) -> list[list[Metrics]]:
    """Accuracy and loss on `images` at every point of a grid; rows are `ys`, columns `xs`.

    samples: training images over which batch-norm statistics are recomputed at every point.
    """
    rows, reset = [], BatchNormReset(model)
    for y in ys:
        states = [plane.point(x, y) for x in xs]
        if has_batch_norm(model):
            states = [reset(s, (x for x, _ in in_order(samples, 2000))) for s in states]
        rows.append(evaluate(model, states, images))
    return rows


def _vector(state: State, names: Sequence[str]) -> Tensor:
    return torch.cat([state[name].flatten().double() for name in names])
