"""What was tried for a step of training on a CPU, and what won: two tables.

    python benchmarks/training_candidates.py        about three minutes on one core

(a) One residual net: the ways that PyTorch offers to compute its step. (b) Plain chains of linear
layers: how many runs to stack. CPU time of one thread, the shortest of several rounds in turn, in a
process that keeps the memory that it frees, as the workers of a study do.
`benchmarks/training.py` compares what won with the loops that people write.

Channels-last is taken. The other ways win or lose a few per cent by chance of the net: a ReLU in
place gains nothing where memory is kept, oneDNN's layout is not known to half of the layers, and a
compiled step takes longer to compile than a small study trains. Six runs are stacked: on one core
more gain nothing, and with both cores at work larger stacks lose to the cache that the cores share.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence

import torch
from report import Row, Table, as_markdown, keep_memory, machine
from torch import Tensor, nn
from torch.nn import functional as F
from training import flops_per_image

from rebasin_utils.nets import data, models
from rebasin_utils.training import stacking
from rebasin_utils.training.recipes import Recipe
from rebasin_utils.training.train import Job, train_many

BATCH = 128
#: (model, width, (channels, height, width) of an image)
NETS = (
    ("resnet8", 1, (1, 14, 14)),
    ("resnet8", 1, (1, 7, 7)),
    ("resnet8", 2, (1, 14, 14)),
    ("resnet20", 1, (1, 14, 14)),
    ("resnet20", 1, (3, 32, 32)),
)
COMPILED = NETS[0]  # compiling takes half a minute a net


class Blocked(nn.Module):
    """A residual net whose activations stay in oneDNN's own blocked layout until the pooling."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        features = self.net.stages(self.net.stem(images.to_mkldnn())).to_dense()
        return self.net.classifier(self.net.flatten(self.net.pool(features)))


def channels_last(net: nn.Module) -> nn.Module:
    return net.to(memory_format=torch.channels_last)


def in_place(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    return net


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "NCHW": lambda net: net,
    "channels_last (taken)": channels_last,
    "channels_last, ReLU in place": lambda net: channels_last(in_place(net)),
    "oneDNN's blocked layout": Blocked,
    "channels_last, torch.compile": lambda net: torch.compile(channels_last(net)),
}


def ways_to_step(name: str, width: int, shape: Sequence[int], rounds: int = 6) -> Row:
    """(a): milliseconds of forward, backward and update of one batch, each way."""
    torch.manual_seed(0)
    x, y = torch.randn(BATCH, *shape), torch.randint(0, 10, (BATCH,))
    base = models.build(name, tuple(shape), 10, width)
    steps = {}
    for way, change in WAYS.items():
        if "compile" in way and (name, width, tuple(shape)) != COMPILED:
            continue
        net = change(copy.deepcopy(base))
        optimizer = torch.optim.SGD(net.parameters(), 0.01, 0.9, weight_decay=5e-4, fused=True)
        images = x.contiguous(memory_format=torch.channels_last) if "last" in way else x
        steps[way] = (net, optimizer, images)
    times: dict[str, list[float]] = {way: [] for way in steps}
    for _ in range(rounds + 1):  # the first is for warming up
        for way, (net, optimizer, images) in steps.items():
            begin = time.process_time()
            optimizer.zero_grad()
            F.cross_entropy(net(images), y).backward()
            optimizer.step()
            times[way].append(time.process_time() - begin)
    size = " × ".join(map(str, shape))
    best = {way: f"{1e3 * min(spent[1:]):.1f}" for way, spent in times.items()}
    taken = float(best["channels_last (taken)"]) / 1e3
    return {
        "ms a step": f"{name}×{width}, {size}",
        **{way: best.get(way, "") for way in WAYS},
        "GFLOP/s of the way taken": flops_per_image(base, shape) * BATCH / taken / 1e9,
    }


def runs_stacked(width: int, counts: Sequence[int] = (1, 2, 4, 8, 12), rounds: int = 3) -> Row:
    """(b): CPU seconds of a run's epoch on 10,000 images of 14 × 14, by runs trained together."""
    images = data.load("fashion-mnist-10k", "train", pool=2)
    nets = [models.build("mlp", images.shape, 10, width, seed) for seed in range(max(counts))]
    jobs = [Job(net.state_dict(), seed) for seed, net in enumerate(nets)]
    best = dict.fromkeys(counts, float("inf"))
    for _ in range(rounds):
        for count in counts:
            stacking.STACKED = count
            begin = time.process_time()
            train_many(nets[0], jobs[:count], Recipe(epochs=1, lr=0.08), images)
            best[count] = min(best[count], (time.process_time() - begin) / count)
    return {"CPU s of an epoch": f"mlp×{width}", **{f"{n} runs": best[n] for n in counts}}


def main() -> None:
    torch.set_num_threads(1)
    described = ", ".join(f"{k} {v}" for k, v in machine().items())
    print(f"# What was tried for a step of training\n\n{described}; one thread, CPU time.")
    print("\n" + __doc__.strip().split("\n\n")[-1])  # what the tables decided
    tables: dict[str, Table] = {
        "(a) Residual nets: a step of one run": [ways_to_step(*net) for net in NETS],
        "(b) Chains of linear layers: runs stacked": [runs_stacked(1), runs_stacked(2)],
    }
    for title, table in tables.items():
        print(f"\n## {title}\n\n{as_markdown(table)}")


if __name__ == "__main__":
    keep_memory()
    main()
