"""Whether matching that stops by itself has seen enough: two tables.

    python benchmarks/enough.py --store FOLDER     minutes, once its networks are trained there
    python benchmarks/enough.py --store FOLDER --json FILE     writes the numbers as well

Pairs of trained networks (those of `evening`, and an MLP by the same recipe) are matched on
CIFAR-10 in random orders, until the bound says that what is lacking is below a limit. What is
really lacking is measured on images that no trial reads. (a) has how often the bound holds and how
far it is from that; (b) what it takes, beside the procedure of the paper's released code, which
reads all 50,000 images once for every group: timed on some of them, and scaled up.

CIFAR-10 as JPEGs in REBASIN_DATA (`data.source=cifar10-jpeg`). Times are CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from dataclasses import replace
from pathlib import Path

import matching as layers
import numpy as np
import torch
from report import Row, Table, as_markdown, keep_memory, machine
from torch import Tensor, nn

from rebasin_utils.nets import data
from rebasin_utils.running import runner
from rebasin_utils.study.presets import preset
from rebasin_utils.study.stages import dense
from rebasin_utils.study.study import Study
from rebasin_utils.symmetry.assignment import best_assignment
from rebasin_utils.symmetry.matching import PRECISION, Matching, match_activations, similarities
from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.symmetry.tracing.taps import tapped

#: Images that trials read in random orders; what is lacking is measured on the others.
READ, WHOLE, BATCH = 25_000, 50_000, 128


def studies(store: Path) -> list[tuple[Study, int]]:
    """The networks and how many trials each has, 200 together."""
    (resnet8,) = preset("evening-resnet8")
    (resnet20,) = preset("evening-resnet20")
    mlp = resnet8.with_values(name="mlp", **{"model.name": "mlp", "data.augment": False})
    return [
        (Study(settings, store, "cpu"), trials)
        for settings, trials in ((mlp, 72), (resnet8, 80), (resnet20, 48))
    ]


def images(study: Study) -> tuple[Tensor, Tensor]:
    """The images that are read, and those that are held out."""
    s = study.settings.data
    train, test = (
        data.load(s.source, split, s.pool, scale_pad=s.scale_pad) for split in ("train", "test")
    )
    read, held = train.pixels[:READ], torch.cat([train.pixels[READ:], test.pixels])
    return train.normalised(read), train.normalised(held)


class Truth:
    """What is lacking, by images that were held out."""

    def __init__(self, spec: PermutationSpec, nets: list[nn.Module], held: Tensor):
        compared = similarities(spec, *nets, held.split(500))
        self.matrices = {name: matrix for name, (matrix, _) in compared.items()}
        self.best = {name: self._total(name, None) for name in self.matrices}

    def _total(self, name: str, p: np.ndarray | None) -> float:
        matrix = self.matrices[name]
        p = best_assignment(matrix, PRECISION) if p is None else p
        return matrix[np.arange(len(p)), p].sum()

    def lacking(self, found: Matching) -> dict[str, float]:
        """By group, in units of similarity."""
        own = found.permutation
        return {n: best - self._total(n, own[n].numpy()) for n, best in self.best.items()}


def trials(study: Study, count: int, until: float) -> tuple[Row, Row]:
    """A row of (a) and one of (b)."""
    runner.run(study, stages=["dense"], quiet=True)
    read, held = images(study)
    pairs = list(study.settings.pairs)
    nets = {
        seed: [study.network(dense.net(study.settings, role, seed)) for role in ("A", "B")]
        for seed in pairs
    }
    truth = {seed: Truth(study.spec, nets[seed], held) for seed in pairs}
    whole, groups, seen, seconds = [], [], [], []
    for trial in range(count):
        seed = pairs[trial % len(pairs)]
        order = torch.randperm(READ, generator=torch.Generator().manual_seed(trial))
        begin = time.process_time()
        batches = (read[some] for some in order.split(BATCH))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # where images end, the whole bound may do
            found = match_activations(study.spec, *nets[seed], batches, until=until)
        seconds.append(time.process_time() - begin)
        seen.append(max(each.samples for each in found.enough.values()))
        best, lacks = truth[seed].best, truth[seed].lacking(found)
        whole.append((sum(lacks.values()) / sum(best.values()), found.regret))
        groups += [(lacks[n] / best[n], found.enough[n].regret) for n in best]
    name = f"{study.settings.model.name}×{study.settings.model.width}"
    (actual, bound), (of_group, bound_of_group) = np.array(whole).T, np.array(groups).T
    held_row = {
        "network": name,
        "trials": count,
        "images read (median)": int(np.median(seen)),
        "lacking, %": 100 * actual.mean(),
        "bound, %": 100 * bound.mean(),
        "bound / lacking": bound.mean() / actual.mean(),
        "bound holds, %": 100 * (actual <= bound).mean(),
        "of one group, %": 100 * (of_group <= bound_of_group).mean(),
    }
    some = list(read[:2000].split(500))
    moving, reference = nets[pairs[0]]
    parts = {n: replace(study.spec, groups={n: g}) for n, g in study.spec.groups.items()}
    subnets = {n: (tapped(reference, part), tapped(moving, part)) for n, part in parts.items()}
    begin = time.process_time()
    layers.layer_by_layer(subnets, some)
    released = (time.process_time() - begin) * WHOLE / 2000
    cost_row = {
        "network": name,
        "groups": len(study.spec.groups),
        "images read (median)": int(np.median(seen)),
        "seconds": float(np.median(seconds)),
        "released: images": WHOLE * len(study.spec.groups),
        "released: seconds": released,
        "cost, %": 100 * float(np.median(seconds)) / released,
    }
    return held_row, cost_row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--store", type=Path, required=True, help="where the networks are trained")
    parser.add_argument("--until", type=float, default=0.02, help="the limit, as a share")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    tables: dict[str, Table] = {"a": [], "b": []}
    for study, count in studies(arguments.store):
        for name, row in zip("ab", trials(study, count, arguments.until), strict=True):
            tables[name].append(row)
    print(f"(a) Matching until {arguments.until:.0%} is lacking at most\n")
    print(as_markdown(tables["a"]))
    print("\n(b) What it costs\n")
    print(as_markdown(tables["b"]))
    print("\n" + ", ".join(f"{k} {v}" for k, v in machine().items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(tables | {"machine": machine()}, indent=1))


if __name__ == "__main__":
    main()
