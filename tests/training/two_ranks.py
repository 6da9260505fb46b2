"""What `test_ranks` runs: `torchrun … two_ranks.py FOLDER`, or one process without `torchrun`.

Every deed returns tensors by name, which the first rank writes to a file in FOLDER.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from rebasin_utils.nets import data, masks, models
from rebasin_utils.nets.data import SOURCES, Images
from rebasin_utils.symmetry.matching import match_activations
from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.training.evaluate import evaluate
from rebasin_utils.training.ranks import joined, started
from rebasin_utils.training.recipes import Recipe
from rebasin_utils.training.train import Job, Trained, train

RECIPE = Recipe(epochs=5, lr=0.02, batch_size=32)  # 20 steps of 128 images


def images(n: int = 128) -> Images:
    """Noise, a little brighter by class. An even background would put whole maps on ReLU's kink."""
    generator = torch.Generator().manual_seed(n)
    labels = torch.arange(n) % 10
    pixels = torch.randint(0, 200, (n, 1, 14, 14), generator=generator) + 5 * labels.view(
        -1, 1, 1, 1
    )
    return Images(pixels.to(torch.uint8), labels, SOURCES["fashion-mnist"])


def trained(name: str, recipe: Recipe, ranks) -> dict[str, torch.Tensor]:
    """A masked net, trained and tested."""
    done = _train(name, recipe, ranks)
    (test,) = evaluate(
        models.build(name, images().shape, 10), [done.state], images(301), 100, ranks
    )
    return {**done.state, "losses": torch.tensor(done.losses), "test": torch.tensor(test)}


def interpolated(name: str, ranks) -> dict[str, torch.Tensor]:
    """The same by AWS, whose nets are to be tested when their statistics are recomputed."""
    done = _train(name, RECIPE, ranks, aws_seed=7)
    return {**done.state, "losses": torch.tensor(done.losses)}


def _train(name: str, recipe: Recipe, ranks, aws_seed: int | None = None) -> Trained:
    net = models.build(name, images().shape, 10, seed=1)
    state = net.state_dict()
    names = masks.prunable(net)
    mask = masks.global_magnitude(state, masks.dense_mask(state, names), keep=2000)
    job = Job(state, 3, mask, aws_seed=aws_seed)
    return train(net, job, recipe, images(), augment=True, ranks=ranks)


def matched(name: str, ranks) -> dict[str, torch.Tensor]:
    nets = [models.build(name, images().shape, 10, seed=seed) for seed in (1, 2)]
    spec = PermutationSpec.trace(nets[0], images().normalised(images().pixels[:2]))
    split = images() if ranks is None else ranks.share(images())
    batches = [x for x, _ in data.in_order(split, 20)]
    group = None if ranks is None else ranks.group
    return match_activations(spec, *nets, batches, group=group).permutation


DEEDS = {
    "mlp": lambda ranks: trained("mlp", RECIPE, ranks),
    "synchronised": lambda ranks: trained("resnet8", RECIPE, ranks),
    "grouped": lambda ranks: trained("resnet8", replace(RECIPE, batch_norm_groups=4), ranks),
    "interpolated": lambda ranks: interpolated("resnet8", ranks),
    "match-mlp": lambda ranks: matched("mlp", ranks),
    "match-resnet8": lambda ranks: matched("resnet8", ranks),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    with joined(torch.device("cpu")) if started() else nullcontext((None, None)) as (ranks, _):
        for name, deed in DEEDS.items():
            tensors = deed(ranks)
            if ranks is None or ranks.leads:
                save_file({n: t.contiguous() for n, t in tensors.items()}, out / name)
