"""In which order groups are matched, and how many passes over the data that takes.

Groups are matched on samples. A permuted network computes the same activations in another order, so
that matching one layer does not change what another layer sees: as long as the samples of a group
are the data's own (images, pixels, tokens that stay in place), one pass serves all groups.

That ends where one activation holds two groups. In a mixer's [images, channels, hidden units] the
samples of the hidden units are images × channels, and the channels stand in another order in the
other net. Such a group is looked at in a later pass, in which the channels' permutation is known
and applied. Groups that are each other's samples start from what no order changes: an activation
that shows a group alone or, where there is none, the mean over the other groups' units. Once the
others are settled they are looked at again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rebasin_utils.symmetry.permutation import Permutation, Spec, Tap
from rebasin_utils.symmetry.tracing.taps import as_matrix


@dataclass(frozen=True, eq=False)
class Look:
    """Where a group is looked at in one pass.

    tap: the activation. among: the groups whose units are among its samples, and where they lie.
    """

    tap: Tap
    among: tuple[tuple[str, Tap], ...] = ()

    def needs(self) -> set[str]:
        """The groups whose permutation must be known: else both nets have other samples."""
        return {name for name, _ in self.among}


def passes(spec: Spec) -> list[dict[str, Look]]:
    """What to look at in every pass, by group; one pass for most networks.

    A group that is looked at twice has its last look at its tap.
    """
    finals = {name: look_at(spec, group.tap) for name, group in spec.groups.items()}
    starts: dict[str, Look] = {}
    while True:
        order, stuck = _in_order(finals, starts)
        if not stuck:
            return order
        freest = {name: _freest(spec, name) for name in stuck if name not in starts}
        name = min(freest, key=lambda n: len(freest[n].among))
        starts[name] = freest[name]


def look_at(spec: Spec, tap: Tap) -> Look:
    """A look at this activation, with the groups that stand along its other dimensions."""
    return Look(
        tap,
        tuple(
            (name, sight)
            for name, group in spec.groups.items()
            for sight in group.sights
            if sight.node == tap.node and not set(sight.dims) & set(tap.dims)
        ),
    )


def arranged(activation: Tensor, look: Look, settled: Permutation) -> Tensor:
    """An activation as a matrix [samples, units], or [samples, units, slots].

    settled: how the units of other groups are to be ordered; where they are among the samples and
        not settled, their mean is taken.
    """
    for name, tap in look.among:
        if name in settled:
            activation = _reordered(activation, tap, settled[name])
        else:
            activation = activation.mean(tap.dims, keepdim=True)
    return as_matrix(activation, look.tap)


def _in_order(
    finals: Mapping[str, Look], starts: Mapping[str, Look]
) -> tuple[list[dict[str, Look]], list[str]]:
    """The passes, each as early as what it needs allows; and the groups that none can serve."""
    order: list[dict[str, Look]] = []
    settled: set[str] = set()
    todo = dict(finals)
    while todo:
        now = {name: look for name, look in todo.items() if look.needs() <= settled}
        for name in now:
            del todo[name]
        if not order:
            now |= {name: look for name, look in starts.items() if name not in now}
        if not now:
            return order, list(todo)
        order.append(now)
        settled |= now.keys()
    return order, []


def _freest(spec: Spec, name: str) -> Look:
    """The last activation that shows this group among the fewest others."""
    looks = [look_at(spec, sight) for sight in reversed(spec.groups[name].sights)]
    return min(looks, key=lambda look: len(look.among))


def _reordered(activation: Tensor, tap: Tap, p: Tensor) -> Tensor:
    """The activation with a group's units moved by p, wherever `tap` says they are."""
    last = tuple(range(-len(tap.dims), 0))
    x = activation.movedim(tap.dims, last)
    flat = x.flatten(last[0])
    order = torch.arange(flat.shape[-1])
    order[tap.index.flatten()] = tap.index[p].flatten()
    return flat.index_select(-1, order.to(x.device)).view(x.shape).movedim(last, tap.dims)
