"""The straight path between two networks, and batch norm on it.

Two solutions lie in one basin, up to the measure of linear mode connectivity, when loss and error
stay low on the segment between them (Frankle et al. 2020; the paper's equation 3).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from rebasin_utils.errors import InputError, require_state
from rebasin_utils.landscape.repair import Probe, lerp_statistics
from rebasin_utils.nets.data import Split, in_order
from rebasin_utils.nets.devices import channels_last, runs_channels_last
from rebasin_utils.nets.masks import State
from rebasin_utils.symmetry.batches import Batch, head, run
from rebasin_utils.training.evaluate import Metrics, evaluate

Correction = Literal["none", "bn_reset", "repair"]


def lerp(first: State, second: State, alpha: float) -> State:
    """(1 - alpha) first + alpha second, for every floating-point tensor; counters are `first`'s.

    Raises:
        InputError: when one is no state, or they do not have the same names and shapes.
    """
    _require_alike(first, second)
    return {
        name: torch.lerp(t, second[name], alpha) if t.is_floating_point() else t.clone()
        for name, t in first.items()
    }


def _require_alike(first: State, second: State) -> None:
    require_state(first, "first")
    require_state(second, "second")
    if first.keys() != second.keys():
        odd = sorted(first.keys() ^ second.keys())
        raise InputError(f"the two states differ in their tensors: {', '.join(odd[:3])}")
    for name, t in first.items():
        if t.shape != second[name].shape:
            raise InputError(
                f"the two states differ in the shape of the tensor {name!r}: {tuple(t.shape)} and "
                f"{tuple(second[name].shape)}"
            )


def has_batch_norm(model: nn.Module) -> bool:
    """Whether there are running statistics to recompute."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def reset_batch_norm(model: nn.Module, state: State, batches: Iterable[Batch]) -> State:
    """The same weights with batch-norm statistics recomputed: their plain mean over `batches`.

    This is the "REPAIR" of the paper's CIFAR experiments (Jordan et al. 2023, Section 4 call it the
    batch-norm case).

    Args:
        batches: what each may be, `symmetry.batches` says.

    Raises:
        InputError: when there are no batches, or `state` is none.
    """
    return BatchNormReset(model)(state, batches)


class BatchNormReset:
    """A model copied and laid out once, to do `reset_batch_norm` to many states of it."""

    def __init__(self, model: nn.Module):
        self._net = copy.deepcopy(model).eval()
        modules = self._net.modules()
        self._norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in self._norms:
            norm.train()  # nothing else: dropout would change what is measured
            norm.momentum = None  # a cumulative mean
        self._laid_out = False

    @torch.no_grad()
    def __call__(self, state: State, batches: Iterable[Batch]) -> State:
        """What `reset_batch_norm` gives."""
        require_state(state)
        net, measured = self._net, False
        net.load_state_dict(state)
        for norm in self._norms:
            norm.reset_running_stats()
        for batch in batches:
            if not self._laid_out:
                if runs_channels_last(net, lambda n, x=batch: run(n, head(x, 2))):
                    channels_last(net)
                self._laid_out = True
            run(net, batch)
            measured = True
        if not measured:
            raise InputError("batches is empty: statistics need at least one batch of inputs")
        layout = {"memory_format": torch.contiguous_format}
        return {name: t.detach().cpu().clone(**layout) for name, t in net.state_dict().items()}


def merger(
    model: nn.Module,
    first: State,
    second: State,
    correction: Correction = "none",
    samples: Split | None = None,
    probe: Probe | None = None,
) -> Callable[[float], State]:
    """A function of α that gives the net at that point of the segment, corrected.

    At 0 and 1 that is `first` and `second` themselves, which are as they should be, but for the
    statistics that "bn_reset" measures anew.

    Args:
        correction: "none"; "bn_reset", the statistics of its batch norms recomputed; or "repair",
            those of all hidden layers brought to what lies between the ends' (`repair`).
        samples: training images to measure statistics on.
        probe: of the model, for "repair", where there is one already.
    """

    def batches() -> Iterator[Tensor]:
        return (x for x, _ in in_order(samples, 2000))

    if correction != "none" and samples is None:
        raise InputError(f"correction = {correction!r}: needs samples to measure statistics on")
    if correction == "bn_reset":
        reset = BatchNormReset(model)
        return lambda alpha: reset(lerp(first, second, alpha), batches())
    _require_alike(first, second)
    ends = {0: first, 1: second}
    if correction == "none":
        return lambda alpha: ends.get(alpha) or lerp(first, second, alpha)
    probe = probe or Probe(model)
    of_ends = [probe.statistics(end, batches()) for end in (first, second)]
    return lambda alpha: (
        ends.get(alpha)
        or probe.repair(lerp(first, second, alpha), lerp_statistics(*of_ends, alpha), batches())
    )


def path(
    model: nn.Module,
    first: State,
    second: State,
    alphas: Sequence[float],
    images: Split,
    correction: Correction = "none",
    samples: Split | None = None,
) -> list[Metrics]:
    """Accuracy and loss on `images` at every point `alphas` of the segment from first to second.

    correction, samples: as for `merger`.
    """
    at = merger(model, first, second, correction, samples)
    return evaluate(model, [at(alpha) for alpha in alphas], images)


def barrier(values: Sequence[float], alphas: Sequence[float]) -> float:
    """Largest excess of `values` over the straight line between its two ends (equation 3).

    values: loss or error along a path that begins at alpha 0 and ends at alpha 1. Never negative:
    at the ends the excess is zero.
    """
    if alphas[0] != 0 or alphas[-1] != 1:
        raise InputError(f"alphas = {alphas[0]} … {alphas[-1]}: the path must go from 0 to 1")
    line = [(1 - a) * values[0] + a * values[-1] for a in alphas]
    return max(v - expected for v, expected in zip(values, line, strict=True))
