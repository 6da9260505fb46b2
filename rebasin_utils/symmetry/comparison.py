"""Two nets run in step over the same batches, and how alike their units act at every look."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rebasin_utils.symmetry.activations import streamed
from rebasin_utils.symmetry.batches import Batch, arguments, tensors
from rebasin_utils.symmetry.enough import Quarters
from rebasin_utils.symmetry.moments import Moments, Objective, Std
from rebasin_utils.symmetry.passes import Look
from rebasin_utils.symmetry.permutation import Permutation
from rebasin_utils.symmetry.spec import PermutationSpec


@dataclass(frozen=True, eq=False)
class Pair:
    """The two nets, their spec, and by which statistic units are compared.

    group: of the ranks that see a part of the data each.
    """

    spec: PermutationSpec
    moving: nn.Module
    reference: nn.Module
    objective: Objective
    std: Std
    group: dist.ProcessGroup | None = None

    def compare(
        self,
        looks: Mapping[Hashable, Look],
        settled: Permutation,
        batches: Iterable[Batch],
        units: Mapping[Hashable, tuple[np.ndarray, np.ndarray]] | None = None,
        gather: Mapping[Hashable, Quarters] | None = None,
    ) -> dict[Hashable, tuple[np.ndarray, int]]:
        """One pass: for every look the similarity of all pairs of units, and how many are dead.

        settled: the permutation of those groups of the moving net that are known.
        units: for every look the reference's and the moving net's units that are wanted, all
            where not given.
        gather: for every look what gathers its moments, and ends the pass once all have seen
            enough; all batches are gone through where not given.

        Returns:
            float64 [units of reference, units of moving] and a count; nothing without batches.
        """
        in_place = {name: torch.arange(len(p)) for name, p in settled.items()}
        run_reference = streamed(self.reference, self.spec, looks, in_place)
        run_moving = streamed(self.moving, self.spec, looks, settled)
        moments: dict[Hashable, Moments | Quarters] = dict(gather or {})
        for batch in batches:
            inputs = arguments(batch, run_reference.names)
            samples = (len(tensors(inputs)[0]),) if gather else ()
            in_step = zip(run_reference(*inputs), run_moving(*inputs), strict=True)
            for (name, b), (_, a) in in_step:
                if name not in moments:
                    moments[name] = Moments(self.objective, self.std)
                pair = [b, a] if units is None else _taken(b, a, *units[name])
                moments[name].add(*pair, *samples)
            if gather and all(part.done for part in gather.values()):
                break
        if self.group is not None:
            for name in looks:
                moments[name].sum_over(self.group)
        seen = [name for name in looks if name in moments and not moments[name].empty]
        return {name: moments[name].similarity() for name in seen}


def _taken(b: Tensor, a: Tensor, rows: np.ndarray, columns: np.ndarray) -> list[Tensor]:
    pairs = ((b, rows), (a, columns))
    return [x[:, torch.from_numpy(index).to(x.device)] for x, index in pairs]
