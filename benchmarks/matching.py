"""What matching costs, and how exact it is: four tables.

    python benchmarks/matching.py                 about ten minutes on one core
    python benchmarks/matching.py --quick         the same tables from little data: one minute
    python benchmarks/matching.py --json FILE     writes the numbers as well

(a) and (b) time activation matching against the procedure of the paper's released code (one pass
over the data per group, each net run up to that group's layer, float64 moments) and against running
the two nets and nothing else; (c) compares the correlation with float64; (d) is weight matching of
trained nets, beside the package called `rebasin` on PyPI (https://pypi.org/project/rebasin), where
its folder is given: it shares our distribution's name, so it cannot be installed beside us.

    pip install --no-deps --target FOLDER rebasin==0.0.47 torchview graphviz
    python benchmarks/matching.py --rebasin-path FOLDER

All times are CPU seconds of one thread, in a process that keeps the memory it frees, as the workers
of a study do: what the system takes to map and clear pages varies more than what is to be seen.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from report import Row, Table, as_markdown, keep_memory, machine
from torch import Tensor, nn
from torch.nn import functional as F

from rebasin_utils.landscape.interpolation import path, reset_batch_norm
from rebasin_utils.nets import data, models
from rebasin_utils.nets.data import Images
from rebasin_utils.symmetry.activations import streamed
from rebasin_utils.symmetry.matching import assign, match_activations, similarities
from rebasin_utils.symmetry.moments import Moments
from rebasin_utils.symmetry.permutation import Permutation, State, permute
from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.symmetry.tracing.taps import tapped
from rebasin_utils.symmetry.weight_matching import match_weights
from rebasin_utils.training.recipes import Recipe
from rebasin_utils.training.train import Job, train_many


@dataclass(frozen=True)
class Case:
    """Two nets to match on images; `batches` of them for (a), `more_batches` for (b)."""

    name: str
    build: Callable[[int], nn.Module]
    side: int
    batch_size: int
    batches: int
    more_batches: int

    def nets(self) -> tuple[nn.Module, nn.Module]:
        """Random weights, with batch-norm statistics that fit the images, in eval mode."""
        nets = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            net = self.build(seed)
            state = reset_batch_norm(net, net.state_dict(), self.images(1))
            net.load_state_dict(state)
            nets.append(net.eval())
        return tuple(nets)

    def images(self, batches: int) -> list[Tensor]:
        """Fashion-MNIST in three channels, resized."""
        images = data.load("fashion-mnist-10k", "train", limit=batches * self.batch_size)
        pixels = images.normalised(images.pixels)
        pixels = F.interpolate(pixels, size=(self.side, self.side), mode="bilinear")
        return list(pixels.expand(-1, 3, -1, -1).contiguous().split(self.batch_size))


def resnet20(width: int) -> Callable[[int], nn.Module]:
    return lambda seed: models.build("resnet20", (3, 32, 32), 10, width, seed)


def cases(quick: bool) -> list[Case]:
    return [
        Case("ResNet20×1", resnet20(1), 32, 128, *((1, 2) if quick else (4, 8))),
        Case("ResNet20×4", resnet20(4), 32, 32, *((1, 2) if quick else (4, 6))),
        Case(
            "ResNet50",
            lambda seed: torchvision.models.resnet50(),
            64,
            64,
            *((1, 1) if quick else (6, 24)),
        ),
    ]


def timed(work: Callable, *arguments) -> tuple[float, Any]:
    """CPU seconds of a call, and what it returns; what earlier calls left is cleared before."""
    gc.collect()
    begin = time.process_time()
    result = work(*arguments)
    return time.process_time() - begin, result


def against_layer_by_layer(case: Case) -> Row:
    """(a)"""
    moving, reference = case.nets()
    batches = case.images(case.batches)
    spec = PermutationSpec.trace(moving, batches[0][:2])
    parts = {n: replace(spec, groups={n: g}) for n, g in spec.groups.items()}
    subnets = {n: (tapped(reference, p), tapped(moving, p)) for n, p in parts.items()}
    their_moments, correlations = timed(layer_by_layer, subnets, batches)
    our_moments, compared = timed(similarities, spec, moving, reference, batches)
    compared = {n: similarity for n, (similarity, _) in compared.items()}
    their_assignment, their_permutation = timed(assign_all, correlations)
    our_assignment, our_permutation = timed(assign_all, compared)
    differences = [np.abs(compared[n] - c).max() for n, c in correlations.items()]
    return {
        "net": case.name,
        "images": case.batches * case.batch_size,
        "passes, theirs": len(spec.groups),
        "passes, ours": 1,
        "moments, theirs (s)": their_moments,
        "moments, ours (s)": our_moments,
        "ratio": their_moments / our_moments,
        "assignment, theirs (s)": their_assignment,
        "assignment, ours (s)": our_assignment,
        "ratio of totals": (their_moments + their_assignment) / (our_moments + our_assignment),
        "mean correlation, theirs": mean_similarity(correlations, their_permutation),
        "mean correlation, ours": mean_similarity(correlations, our_permutation),
        "largest difference of a correlation": max(differences),
    }


def layer_by_layer(
    subnets: dict[str, tuple[Callable, Callable]], batches: Sequence[Tensor]
) -> dict[str, np.ndarray]:
    """One pass over the data per group; correlation from averaged float64 moments."""
    correlations = {}
    for name, pair in subnets.items():
        totals = [0.0] * 5
        for x in batches:
            b, a = (subnet(x)[name].double() for subnet in pair)
            moments = (b.mean(0), a.mean(0), b.square().mean(0), a.square().mean(0))
            moments += (b.T @ a / len(b),)
            totals = [t + m / len(batches) for t, m in zip(totals, moments, strict=True)]
        mean_b, mean_a, square_b, square_a, products = totals
        stds = [(q - m.square()).sqrt() for q, m in ((square_b, mean_b), (square_a, mean_a))]
        correlation = (products - torch.outer(mean_b, mean_a)) / torch.outer(*stds)
        correlations[name] = correlation.nan_to_num(0.0, 0.0, 0.0).numpy()
    return correlations


def assign_all(compared: dict[str, np.ndarray]) -> Permutation:
    return {name: assign(similarity, 0, name)[0] for name, similarity in compared.items()}


def mean_similarity(compared: dict[str, np.ndarray], p: Permutation) -> float:
    chosen = [s[np.arange(len(s)), p[name].numpy()] for name, s in compared.items()]
    return np.concatenate(chosen).mean()


def against_bare_forward(case: Case, rounds: int) -> Row:
    """(b): the shortest of `rounds`, in turn; the forward in the faster memory format."""
    nets, batches = case.nets(), case.images(case.more_batches)
    spec = PermutationSpec.trace(nets[0], batches[0][:2])
    formats = {
        f: [copy.deepcopy(net).to(memory_format=f) for net in nets]
        for f in (torch.contiguous_format, torch.channels_last)
    }
    forward(nets, batches[:1], torch.contiguous_format)
    trial = {f: timed(forward, copies, batches[:2], f)[0] for f, copies in formats.items()}
    faster = min(trial, key=trial.get)
    shapes = [matrix.shape for _, matrix in streamed(nets[0], spec)(batches[0])]
    pairs = [(torch.rand(shape), torch.rand(shape)) for shape in shapes]
    bare, ours, alone = [], [], []
    for _ in range(rounds):
        bare.append(timed(forward, formats[faster], batches, faster)[0])
        ours.append(timed(similarities, spec, *nets, batches)[0])
        alone.append(timed(lambda: [b.mT @ a for _ in batches for b, a in pairs])[0])
    return {
        "net": case.name,
        "images": case.more_batches * case.batch_size,
        "faster format": str(faster).removeprefix("torch."),
        "forward of both nets (s)": min(bare),
        "with all moments (s)": min(ours),
        "ratio": min(ours) / min(bare),
        "the products alone (s)": min(alone),
    }


@torch.no_grad()
def forward(
    nets: Sequence[nn.Module], batches: Sequence[Tensor], memory_format: torch.memory_format
) -> None:
    for x in batches:
        x = x.contiguous(memory_format=memory_format)
        for net in nets:
            net(x)


def precision(ratio: float, batches: int) -> Row:
    """(c): largest error of a correlation of 64 + 64 units over batches of 16,384 samples."""
    units, samples = 64, 16384
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(units, units, generator=generator) / units**0.5
    collected, pairs = Moments("correlation", "pooled"), []
    for _ in range(batches):
        b = torch.randn(samples, units, generator=generator)
        a = b @ mixing + 0.5 * torch.randn(samples, units, generator=generator)
        pairs.append((b + ratio, a + ratio))
        collected.add(*pairs[-1])
    b, a = (torch.cat(side) for side in zip(*pairs, strict=True))
    exact = np.corrcoef(b.double().T.numpy(), a.double().T.numpy())[:units, units:]
    means = b.mean(0), a.mean(0)
    stds = [(x.square().mean(0) - m.square()).sqrt() for x, m in zip((b, a), means, strict=True)]
    raw = ((b.T @ a) / len(b) - torch.outer(*means)) / torch.outer(*stds)
    return {
        "mean / std": ratio,
        "error, ours": np.abs(collected.similarity()[0] - exact).max(),
        "error, raw float32 moments": np.abs(raw.numpy() - exact).max(),
    }


def weights(name: str, recipe: Recipe, images: Images, rebasin_path: Path | None) -> Table:
    """(d): two nets trained on Fashion-MNIST, matched in every way there is."""
    nets = [models.build(name, images.shape, 10, seed=seed) for seed in (0, 1)]
    jobs = [Job(net.state_dict(), seed) for seed, net in enumerate(nets)]
    states = [trained.state for trained in train_many(nets[0], jobs, recipe, images)]
    for net, state in zip(nets, states, strict=True):
        net.load_state_dict(state)
    x = images.normalised(images.pixels[:500])
    spec = PermutationSpec.trace(nets[0], x[:2])
    spec.prove(nets[0], x[:2])
    activations = timed(match_activations, spec, *nets, [x])
    once = timed(match_weights, spec, *states)
    best = timed(lambda: match_weights(spec, *states, restarts=5))
    others = best[1].starts[1:]
    found = [
        ("nothing", 0.0, states[0], ""),
        ("activations", activations[0], moved(spec, activations, states[0]), ""),
        ("weights", once[0], moved(spec, once, states[0]), f"{once[1].sweeps} sweeps"),
        (
            "weights, best of 5 starts",
            best[0],
            moved(spec, best, states[0]),
            f"the 4 random starts lead to {min(others):.5g} … {max(others):.5g}",
        ),
    ]
    if rebasin_path is not None:
        found.append(("rebasin from PyPI", *with_rebasin(rebasin_path, nets, x[:4])))
    entering = {m.tensor for g in spec.groups.values() for m in g.members}
    entering = [t for t in entering if "running_" not in t]
    test = data.load("fashion-mnist-10k", "test", pool=2, limit=2000)
    table = []
    for label, seconds, state, note in found:
        inner = sum((state[t].double() * states[1][t].double()).sum().item() for t in entering)
        samples = images.head(1000)
        middle = path(nets[0], state, states[1], [0.5], test, "bn_reset", samples)[0]
        table.append(
            {
                "net": name,
                "matched by": label,
                "inner product": inner,
                "seconds": seconds,
                "accuracy halfway (%)": 100 * middle.accuracy,
                "note": note,
            }
        )
    return table


def moved(spec: PermutationSpec, matched: tuple[float, Any], state: State) -> State:
    return permute(spec, matched[1].permutation, state)


def with_rebasin(
    folder: Path, nets: Sequence[nn.Module], example: Tensor
) -> tuple[float, State, str]:
    """Seconds of PyPI's `rebasin`, the moving net's state after it, and what is to be said."""
    sys.path.insert(0, str(folder))
    try:
        package = importlib.import_module("rebasin")
        moving, reference = (copy.deepcopy(net).eval() for net in nets)
        torch.manual_seed(0)
        before = moving(example), copy.deepcopy(moving).train()(example)
        descent = package.PermutationCoordinateDescent(reference, moving, example)
        seconds, _ = timed(descent.rebasin)
        after = moving(example), copy.deepcopy(moving).train()(example)
    except Exception as error:
        state = {n: torch.full_like(t, torch.nan) for n, t in nets[0].state_dict().items()}
        return float("nan"), state, f"does not run: {type(error).__name__}"
    finally:
        sys.path.remove(str(folder))
    changes = [
        ((y - x).abs().max() / x.abs().max()).item() for x, y in zip(before, after, strict=True)
    ]
    note = "largest change of its output {:.0e}, with the batch's own statistics {:.0e}"
    return seconds, moving.state_dict(), note.format(*changes)


TITLES = {
    "a": "Activation matching against the layer-by-layer procedure of the released code",
    "b": "Activation matching against a bare forward of both nets",
    "c": "Error of the correlation against float64",
    "d": "Weight matching of trained nets",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    parser.add_argument("--quick", action="store_true", help="little data: numbers mean less")
    parser.add_argument("--rebasin-path", type=Path, help="folder with PyPI's rebasin")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = cases(options.quick)
    rounds, batches, samples = (1, 2, 1000) if options.quick else (4, 16, 5000)
    images = data.load("fashion-mnist-10k", "train", pool=2, limit=samples)
    recipes = {"mlp": Recipe(10, 0.05), "resnet8": Recipe(4, 0.08)}
    tables: dict[str, Callable[[], Table]] = {
        "a": lambda: [against_layer_by_layer(case) for case in chosen],
        "b": lambda: [against_bare_forward(case, rounds) for case in chosen],
        "c": lambda: [precision(ratio, batches) for ratio in (1, 10, 100, 1e3, 1e4)],
        "d": lambda: [
            row
            for name, recipe in recipes.items()
            for row in weights(name, recipe, images, options.rebasin_path)
        ],
    }
    numbers: dict[str, object] = {"machine": machine(), "quick": options.quick}
    described = ", ".join(f"{k} {v}" for k, v in numbers["machine"].items())
    print(f"# Benchmark: matching\n\n{described}; one thread, CPU seconds.")
    for letter, make in tables.items():
        numbers[letter] = make()
        print(f"\n## ({letter}) {TITLES[letter]}\n\n{as_markdown(numbers[letter])}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=1, default=float) + "\n")


if __name__ == "__main__":
    keep_memory()
    main()
