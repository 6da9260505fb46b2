"""What there is to try for training many residual nets on one GPU: a table for each net.

    python benchmarks/gpu_candidates.py                 some minutes
    python benchmarks/gpu_candidates.py --device cpu    the ways that need no GPU, on few images

Every way trains the same runs on the same batches: SGD with momentum, masks applied after every
step. Printed are all runs' images a second (median over the rounds, batches already on the device),
what that is in floating-point operations and in memory traffic, the bytes that a run takes, and the
largest difference of a weight from that of the first way after `CHECKED` steps, relative to the
largest weight: rounding, unless a way is wrong.

Traffic is what PyTorch's operations read and write in a float32 step, one operation at a time. Its
share of a large copy's speed, measured here, says how near a way is to the memory's limit; a way
that fuses operations, or whose operands stay in the cache, or in bf16, may go beyond it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from report import Row, Table, as_markdown, device_argument, machine
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training import flops_per_image

from rebasin_utils.nets import masks, models
from rebasin_utils.nets.masks import Mask, State
from rebasin_utils.training import graphs

BATCH = 128
SPARSITY = 0.9
#: Steps after which the ways' weights are compared.
CHECKED = 4
#: (model, width, (channels, height, width) of an image)
NETS = (("resnet20", 1, (1, 28, 28)), ("resnet20", 1, (3, 32, 32)), ("resnet20", 4, (3, 32, 32)))

COLUMNS = ("images/s", "TFLOP/s", "GB/s", "of a copy's (%)", "MB a run")

Context = Callable[[], AbstractContextManager]


class Loop:
    """One net after the other, step by step."""

    def __init__(self, nets: Sequence[nn.Module], kept: Mask, precision: Context):
        self.nets, self.precision = list(nets), precision
        for net in self.nets:
            net.to(memory_format=torch.channels_last).train()
        self.optimizers = [sgd(net.parameters()) for net in self.nets]
        self.masked = [[(net.get_parameter(n), m) for n, m in kept.items()] for net in self.nets]

    def step(self, x: Tensor, y: Tensor) -> None:
        """x: [runs, batch, channels, height, width], y: [runs, batch]."""
        for i, net in enumerate(self.nets):
            self.optimizers[i].zero_grad()
            with self.precision():
                loss = F.cross_entropy(net(x[i]), y[i])
            loss.backward()
            self.optimizers[i].step()
            for parameter, mask in self.masked[i]:
                parameter.data.mul_(mask)

    def states(self) -> list[State]:
        return [net.state_dict() for net in self.nets]


class Compiled(Loop):
    """One net after the other, its forward and backward compiled by torch.compile."""

    def __init__(self, nets: Sequence[nn.Module], kept: Mask, precision: Context):
        super().__init__(nets, kept, precision)
        for net in self.nets:
            net.compile()


class Stacked:
    """All nets as one with `torch.func.vmap`: their convolutions become grouped ones."""

    def __init__(self, nets: Sequence[nn.Module], kept: Mask, precision: Context):
        self.base, self.precision = nets[0].train(), precision
        self.parameters, self.buffers = stack_module_state(list(nets))
        self.optimizer = sgd(self.parameters.values())
        self.masked = [(self.parameters[name], mask) for name, mask in kept.items()]
        self.losses = vmap(self._loss, randomness="error")

    def _loss(self, parameters: State, buffers: State, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(self.base, (parameters, buffers), (x,)), y)

    def step(self, x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad()
        with self.precision():
            losses = self.losses(self.parameters, self.buffers, x, y)
        losses.sum().backward()
        self.optimizer.step()
        for parameter, mask in self.masked:
            parameter.data.mul_(mask)

    def states(self) -> list[State]:
        tensors = self.parameters | self.buffers
        runs = len(next(iter(tensors.values())))
        return [{n: t[i].detach() for n, t in tensors.items()} for i in range(runs)]


class SideBySide:
    """The package's way: a graph and a stream for each net, the optimiser outside."""

    def __init__(self, nets: Sequence[nn.Module], kept: Mask, precision: Context):
        states = [net.state_dict() for net in nets]
        self.net, self.precision = graphs.Graphed(nets[0], states, _device(nets[0])), precision
        self.optimizer = sgd(self.net.trained)
        trained = self.net.named(self.net.trained)
        self.masked = [(trained[name], mask) for name, mask in kept.items()]

    def step(self, x: Tensor, y: Tensor) -> None:
        with self.precision():  # when the graphs are recorded
            self.net.losses(x, y)
        self.optimizer.step()
        for tensor, mask in self.masked:
            tensor.mul_(mask)

    def states(self) -> list[State]:
        return self.net.states()


class Graphed:
    """Another way whose whole step, all nets' and the optimiser's, is one CUDA graph."""

    def __init__(self, way: Loop | Stacked, x: Tensor, y: Tensor):
        self.way, self.x, self.y = way, x.clone(), y.clone()
        before = [{n: t.clone() for n, t in state.items()} for state in way.states()]
        stream, self.graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # what is made at first use must not be recorded
                way.step(self.x, self.y)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(self.graph, stream=stream):
            way.step(self.x, self.y)
        # Warming up has trained: back to the start.
        with torch.no_grad():
            for state, old in zip(way.states(), before, strict=True):
                for name, tensor in state.items():
                    tensor.copy_(old[name])
        for optimizer in getattr(way, "optimizers", None) or [way.optimizer]:
            for values in optimizer.state.values():
                values["momentum_buffer"].zero_()  # a first step does the same without one

    def step(self, x: Tensor, y: Tensor) -> None:
        self.x.copy_(x)
        self.y.copy_(y)
        self.graph.replay()

    def states(self) -> list[State]:
        return self.way.states()


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


def sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(list(parameters), 0.02, 0.9, weight_decay=5e-4, fused=True)


def bfloat16() -> AbstractContextManager:
    """Master weights and batch norm's statistics stay float32; a graph keeps no cast weights."""
    return torch.autocast("cuda", torch.bfloat16, cache_enabled=False)


@dataclass(frozen=True)
class Way:
    """How a step is made.

    graphed: recorded in one CUDA graph. any_kernel: not only cuDNN's deterministic ones, which make
    a run repeatable. ieee: convolutions in full float32, where PyTorch by default takes
    TensorFloat-32.
    """

    kind: type[Loop] | type[Stacked] | type[SideBySide]
    precision: Context = nullcontext
    graphed: bool = False
    any_kernel: bool = False
    ieee: bool = False

    def begin(self, nets: Sequence[nn.Module], kept: Mask, x: Tensor, y: Tensor) -> Any:
        """The nets at their start, ready to be stepped."""
        torch.backends.cudnn.deterministic = not self.any_kernel
        torch.backends.cudnn.conv.fp32_precision = "ieee" if self.ieee else "tf32"
        way = self.kind(nets, kept, self.precision)
        return Graphed(way, x, y) if self.graphed else way


WAYS = {
    "one after the other": Way(Loop),
    "one after the other, compiled": Way(Compiled),
    "side by side (taken)": Way(SideBySide),
    "side by side, any kernel": Way(SideBySide, any_kernel=True),
    "side by side, IEEE float32": Way(SideBySide, ieee=True),
    "one graph": Way(Loop, graphed=True),
    "vmap": Way(Stacked),
    "vmap, one graph": Way(Stacked, graphed=True),
    "side by side, bf16": Way(SideBySide, bfloat16),
    "one graph, bf16": Way(Loop, bfloat16, graphed=True),
    "vmap, one graph, bf16": Way(Stacked, bfloat16, graphed=True),
}
#: Those that need no GPU.
WITHOUT_GPU = ("one after the other", "vmap")


class Task:
    """Runs of one net, and the batches that they are trained on."""

    def __init__(
        self, model: str, width: int, shape: Sequence[int], runs: int, device: torch.device
    ):
        self.model, self.width, self.shape, self.runs = model, width, tuple(shape), runs
        self.device = device
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(CHECKED, runs, BATCH, *shape, generator=generator)
        labels = torch.randint(0, 10, (CHECKED, runs, BATCH), generator=generator)
        self.batches = list(zip(images.to(device), labels.to(device), strict=True))

    def net(self, seed: int = 0) -> nn.Module:
        return models.build(self.model, self.shape, 10, self.width, seed)

    def begin(self, name: str) -> Loop | Stacked | SideBySide | Graphed:
        """The runs at their start, to be stepped in the way of that name."""
        net = self.net()
        mask = masks.dense_mask(net.state_dict(), masks.prunable(net))
        keep = round((1 - SPARSITY) * masks.count(mask))
        mask = masks.global_magnitude(net.state_dict(), mask, keep)
        kept = {n: m.to(self.device).float() for n, m in mask.items()}
        nets = [self.net(seed).to(self.device) for seed in range(self.runs)]
        return WAYS[name].begin(nets, kept, *self.batches[0])

    def speed(self, way: Loop | Stacked | SideBySide | Graphed, seconds: float) -> float:
        """Images a second of all runs together: the median of five rounds."""
        rounds = []
        for _ in range(5):
            steps, begin = 0, time.perf_counter()
            while time.perf_counter() - begin < seconds / 5:
                for batch in self.batches:
                    way.step(*batch)
                steps += len(self.batches)
                self.wait()
            rounds.append(steps * self.runs * BATCH / (time.perf_counter() - begin))
        return median(rounds)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write; views move nothing."""

    moved = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation(*args, **(kwargs or {}))
        if not operation.is_view:
            tensors = [t for t in tree_leaves((args, kwargs, results)) if isinstance(t, Tensor)]
            self.moved += sum(t.numel() * t.element_size() for t in tensors)
        return results


def bytes_per_image(task: Task) -> float:
    """What the operations of a step move, for one image of one run."""
    way = Loop([task.net()], {}, nullcontext)
    x, y = (part[:1].cpu() for part in task.batches[0])
    way.step(x, y)  # a first step makes the momentum
    with Traffic() as traffic:
        way.step(x, y)
    return traffic.moved / BATCH


def copy_speed(device: torch.device) -> float:
    """Bytes a second that a large copy reads and writes: the best of ten."""
    source = torch.zeros(2**28 if device.type == "cuda" else 2**24, device=device)
    target, best = torch.zeros_like(source), float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        target.copy_(source)
        target[0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - begin)
    return 2 * source.numel() * source.element_size() / best


def try_all(task: Task, names: Sequence[str], seconds: float, copied: float) -> Table:
    """copied: bytes a second of a large copy."""
    flops, moved = flops_per_image(task.net(), task.shape), bytes_per_image(task)
    table, first = [], None
    for name in names:
        row: Row = {
            "net": f"{task.model}×{task.width}, {' × '.join(map(str, task.shape))}",
            "runs": task.runs,
            "way": name,
        }
        try:
            speed, taken, after = _tried(task, name, seconds)
            first = first or after
            row |= {
                "images/s": speed,
                "TFLOP/s": speed * flops / 1e12,
                "GB/s": speed * moved / 1e9,
                "of a copy's (%)": 100 * speed * moved / copied,
                "MB a run": taken / task.runs / 2**20,
                "difference": max(map(_difference, first, after)),
            }
        except Exception as error:  # a way that does not run is a finding, too
            sentence = str(error).split("\n", 1)[0][:80]
            row |= dict.fromkeys(COLUMNS, float("nan"))
            row["difference"] = f"{type(error).__name__}: {sentence}"
        table.append(row)
        if task.device.type == "cuda":
            torch.cuda.empty_cache()
    return table


def _tried(task: Task, name: str, seconds: float) -> tuple[float, float, list[State]]:
    """Images a second, bytes taken at most, and the nets after `CHECKED` steps."""
    if task.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    way = task.begin(name)
    for batch in task.batches:
        way.step(*batch)
    after = [{n: t.detach().cpu().clone() for n, t in s.items()} for s in way.states()]
    speed = task.speed(way, seconds)
    taken = torch.cuda.max_memory_allocated() if task.device.type == "cuda" else float("nan")
    return speed, taken, after


def _difference(a: State, b: State) -> float:
    names = [name for name in a if a[name].is_floating_point()]
    largest = max(a[name].abs().max().item() for name in names)
    return max((a[name] - b[name]).abs().max().item() for name in names) / largest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", type=device_argument, default="cuda", help="cuda (default) or cpu"
    )
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--seconds", type=float, default=2.0, help="that each way is timed")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    options = parser.parse_args()
    device = options.device
    nets, runs, names = NETS, options.runs, list(WAYS)
    if device.type == "cpu":
        torch.set_num_threads(1)
        nets, runs = (("resnet8", 1, (1, 14, 14)),), [2]
        names = list(WITHOUT_GPU)
    described, copied = machine(), copy_speed(device)
    head = ", ".join(f"{k} {v}" for k, v in described.items())
    print(f"# What there is to try for training on a GPU\n\n{head}.", flush=True)
    print(f"A large copy moves {copied / 1e9:.0f} GB/s.", flush=True)
    tables = {}
    for net in nets:
        table = []
        for count in runs:
            task = Task(*net, count, device)
            # Every net is compiled anew, which takes half a minute: one shows what it gains.
            tried = [n for n in names if count == 1 or WAYS[n].kind is not Compiled]
            table += try_all(task, tried, options.seconds, copied)
        tables[table[0]["net"]] = table
        print(f"\n## {table[0]['net']}\n\n{as_markdown(table)}", flush=True)
    if options.json:
        numbers = {"machine": described, "copy (GB/s)": copied / 1e9, "tables": tables}
        options.json.write_text(json.dumps(numbers, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
