"""Weight matching: the permutation that brings one network's weights closest to another's.

It maximises the inner product of the two nets' parameters, and so minimises their distance, by
coordinate ascent (Ainsworth et al. 2023, Algorithm 1): with all other groups held fixed, the best
permutation of one group is an assignment problem, since a tensor's inner product is a sum over the
units on one of its axes. Groups are visited in random order, and again when a neighbour has
changed, until no visit raises the objective. It needs no data.

Where the result ends depends on where it starts. The first start is grown from the axes that
cannot move, inputs first: each group is matched on those tensors alone whose other groups have been
matched before. It ends higher than Algorithm 1's start at the identity does
(`benchmarks/matching.md`). Further starts are random. What of a net enters: see `parameters`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from rebasin_utils.errors import InputError
from rebasin_utils.symmetry.architecture import require_architecture
from rebasin_utils.symmetry.assignment import best_assignment
from rebasin_utils.symmetry.moments import full_float32
from rebasin_utils.symmetry.parameters import PRECISION, by_unit, pair_of_parameters
from rebasin_utils.symmetry.permutation import (
    Member,
    Permutation,
    State,
    compose,
    identity,
    permute,
    random_permutation,
)
from rebasin_utils.symmetry.spec import PermutationSpec

#: A gain below this share of the nets' norms is rounding noise.
NO_GAIN = 1e-9


@dataclass(frozen=True, eq=False)
class WeightMatching:
    """A permutation of the moving net's units, and how it was found.

    history: the objective (inner product of all matched parameters) at the start that led highest,
        and after every sweep over the groups from there; never decreasing.
    starts: the objective that each start led to.
    unmatched: the objective of the identity.
    norms: product of the two nets' norms: the objective can be no higher.
    converged: whether the last sweep found nothing to gain.
    """

    permutation: Permutation
    history: tuple[float, ...]
    starts: tuple[float, ...]
    unmatched: float
    norms: float
    converged: bool

    @property
    def objective(self) -> float:
        """Where the history ends."""
        return self.history[-1]

    @property
    def sweeps(self) -> int:
        """Sweeps over the groups from the start that led highest."""
        return len(self.history) - 1

    def __repr__(self) -> str:
        units = sum(len(p) for p in self.permutation.values())
        end = "converged" if self.converged else "not converged"
        return (
            f"WeightMatching of {units} units in {len(self.permutation)} groups: inner product "
            f"{self.objective:.4g} (unmatched {self.unmatched:.4g}, at most {self.norms:.4g}), "
            f"{end} after {self.sweeps} sweeps, best of {len(self.starts)} starts"
        )


def match_weights(
    spec: PermutationSpec,
    moving_state: State,
    reference_state: State,
    *,
    restarts: int = 1,
    generator: torch.Generator | None = None,
    max_sweeps: int = 100,
) -> WeightMatching:
    """Match the units of one state to those of another, by their parameters alone.

    Args:
        spec: of the architecture of both.
        moving_state, reference_state: states of the nets A and B, whole; not changed. They may be
            on different devices and of different precision. The names that `torch.nn.utils.prune`
            gives (`weight_orig`, `weight_mask`) are understood: masked weights count as zero.
        restarts: how many starts to try, the first grown, the others random.
        generator: for the random starts and the order of the groups, on the CPU; one with seed 0 if
            not given.
        max_sweeps: after so many sweeps over the groups a start is given up as it stands.

    Returns:
        A `WeightMatching`; `permute(spec, matching.permutation, moving_state)` is near the
        reference. The same on every run and for any number of threads.

    Raises:
        InputError: when a state is not of the spec's architecture (the classes may differ; then
            the classifier does not enter), or holds a tensor that is not finite.
    """
    for name, value in (("restarts", restarts), ("max_sweeps", max_sweeps)):
        if value < 1:
            raise InputError(f"{name} = {value}: must be 1 or more")
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    require_architecture(spec, moving_state, "the moving state")
    require_architecture(spec, reference_state, "the reference state")
    moving, reference = pair_of_parameters(spec, moving_state, reference_state)
    norms = math.prod(
        math.sqrt(sum(_inner(t, t) for t in side.values())) for side in (moving, reference)
    )
    starts, best = [], None
    with full_float32(next((t.device for t in reference.values()), torch.device("cpu"))):
        unmatched = sum(_inner(reference[name], t) for name, t in moving.items())
        for start in range(restarts):
            ascent = _Ascent(spec, moving, reference, NO_GAIN * norms)
            if start == 0:
                ascent.grow()
            else:
                ascent.move(random_permutation(spec, generator))
            ascent.climb(generator, max_sweeps)
            starts.append(ascent.history[-1])
            if best is None or ascent.history[-1] > best.history[-1]:
                best = ascent
    return WeightMatching(
        best.permutation,
        tuple(best.history),
        tuple(starts),
        unmatched,
        norms,
        not best.stale,
    )


class _Ascent:
    """One coordinate ascent: the moving net's parameters as moved so far.

    members: of each group, the axes that enter. sharing: the groups that move each tensor.
    stale: the groups to visit, because a neighbour has changed since the last visit.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        moving: Mapping[str, Tensor],
        reference: Mapping[str, Tensor],
        no_gain: float,
    ):
        self.spec, self.reference, self.no_gain = spec, reference, no_gain
        self.moved = dict(moving)
        self.permutation = identity(spec)
        self.members = {
            name: [m for m in group.members if m.tensor in reference]
            for name, group in spec.groups.items()
        }
        self.sharing: dict[str, list[str]] = defaultdict(list)
        for name, members in self.members.items():
            for member in members:
                self.sharing[member.tensor].append(name)
        self.inner = {name: _inner(reference[name], t) for name, t in moving.items()}
        self.history: list[float] = []
        self.stale = set(spec.groups)

    def move(self, p: Permutation) -> None:
        """Move the groups that p names, from where they are now."""
        tensors = {m.tensor for name in p for m in self.members[name]}
        whole = identity(self.spec) | p
        self.moved |= permute(self.spec, whole, {name: self.moved[name] for name in tensors})
        self.inner |= {name: _inner(self.reference[name], self.moved[name]) for name in tensors}
        self.permutation = compose(whole, self.permutation)

    def grow(self) -> None:
        """Match group after group on the tensors that all other groups have settled."""
        settled: set[str] = set()
        for name in self.spec.groups:
            members = [m for m in self.members[name] if self._others(m, name) <= settled]
            if members:
                self.move({name: self._best(members)})
            settled.add(name)

    def climb(self, generator: torch.Generator, max_sweeps: int) -> None:
        """Visit stale groups in random order until there are none."""
        names = list(self.spec.groups)
        self.history.append(math.fsum(self.inner.values()))
        for _ in range(max_sweeps):
            for i in torch.randperm(len(names), generator=generator).tolist():
                if names[i] in self.stale:
                    self._visit(names[i])
            self.history.append(math.fsum(self.inner.values()))
            if not self.stale:
                return

    def _visit(self, name: str) -> None:
        """Take the best permutation of one group, if it raises the objective.

        It always does, unless a tensor has the group on two of its axes (a square weight within a
        residual stream): then the assignment holds one of them fixed and may do harm.
        """
        self.stale.discard(name)
        if not self.members[name]:
            return
        kept = self.moved, self.inner, self.permutation
        self.moved, self.inner = dict(self.moved), dict(self.inner)
        self.move({name: self._best(self.members[name])})
        touched = {m.tensor for m in self.members[name]}
        if math.fsum(self.inner[t] - kept[1][t] for t in touched) <= self.no_gain:
            self.moved, self.inner, self.permutation = kept
            return
        self.stale |= {n for t in touched for n in self.sharing[t]} - {name}
        if any(self.sharing[t].count(name) > 1 for t in touched):
            self.stale.add(name)

    def _best(self, members: list[Member]) -> Tensor:
        """The best assignment of a group's units, judged by these of its axes."""
        similarity = sum(
            by_unit(self.reference[m.tensor], m) @ by_unit(self.moved[m.tensor], m).mT
            for m in members
        )
        return torch.from_numpy(best_assignment(similarity.double().cpu().numpy(), PRECISION))

    def _others(self, member: Member, name: str) -> Set[str]:
        """The groups that move this tensor on other axes, or elsewhere on this one."""
        sharing = list(self.sharing[member.tensor])
        sharing.remove(name)
        return set(sharing)


def _inner(a: Tensor, b: Tensor) -> float:
    return (a * b).sum(dtype=torch.float64).item()
