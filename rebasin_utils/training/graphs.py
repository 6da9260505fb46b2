"""Several networks side by side on one GPU, their steps recorded as CUDA graphs.

A step of a small network is hundreds of short kernels: a GPU waits for Python between them, and
none of them fills it. `Graphed`, behind the face of `stacking.Stacked`, records the forward and
backward pass of every network once, and plays all of them at every step, each on a stream of its
own. The kernels are those of one network alone, so the numbers are, too.

`choose` tries this on the GPU at hand. Whether it pays differs by network and GPU, and nothing is
gained that is not also right: a trial compares losses, gradients, weights and statistics.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from rebasin_utils.nets.devices import memory_available
from rebasin_utils.nets.masks import State
from rebasin_utils.training.stacking import Single, of_each_run

#: Largest relative difference from a network alone that a trial lets pass. A sum that is rounded
#: otherwise and flips a ReLU or two makes a thousandth, numbers of another run make one.
TOLERANCE = 0.01

#: Steps that a trial measures.
STEPS = 20


class Graphed:
    """Several networks, stepped by graphs.

    Every parameter and buffer is one tensor [runs, *shape] of all networks, and so is a parameter's
    gradient, so that what an optimiser and masks do is done once for all of them.
    """

    def __init__(self, model: nn.Module, states: Sequence[State], device: torch.device):
        self.runs = len(states)
        self._module = copy.deepcopy(model).to(device).train()
        self._tensors = {
            name: _channels_last(torch.stack([state[name] for state in states]).to(device))
            for name in states[0]
        }
        self._names = [name for name, _ in model.named_parameters()]
        self.trained = [self._tensors[name] for name in self._names]
        for tensor in self.trained:
            tensor.grad = torch.zeros_like(tensor)
        self._losses = torch.zeros(self.runs, dtype=self.trained[0].dtype, device=device)
        self._played: list[tuple[torch.cuda.Stream, torch.cuda.CUDAGraph]] = []

    def named(self, tensors: Sequence[Tensor]) -> State:
        return dict(zip(self._names, tensors, strict=True))

    def gradients(self) -> State:
        return self.named([tensor.grad for tensor in self.trained])

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of every run's batch; its gradient goes to `trained`.

        x: [runs, batch, channels, height, width], y: [runs, batch] -> [runs]. All batches are of
        one size.
        """
        if not self._played:
            self._record(x, y)
        self._x.copy_(x)
        self._y.copy_(y)
        here = torch.cuda.current_stream(x.device)
        for stream, graph in self._played:
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                graph.replay()
        for stream, _ in self._played:
            here.wait_stream(stream)
        return self._losses.clone()

    def _record(self, x: Tensor, y: Tensor) -> None:
        self._x, self._y = x.clone(), y.clone()
        here = torch.cuda.current_stream(x.device)
        before = {name: tensor.clone() for name, tensor in self._tensors.items()}
        for run in range(self.runs):
            stream, graph = torch.cuda.Stream(x.device), torch.cuda.CUDAGraph()
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                for _ in range(3):  # what is made at first use must not be recorded
                    self._step(run)
            here.wait_stream(stream)
            with torch.cuda.graph(graph, stream=stream):
                self._step(run)
            self._played.append((stream, graph))
        for name, tensor in self._tensors.items():
            tensor.copy_(before[name])  # batch norm has counted

    def _step(self, run: int) -> None:
        own = {name: tensor[run] for name, tensor in self._tensors.items()}
        parameters = [
            own[name].requires_grad_(parameter.requires_grad)
            for name, parameter in self._module.named_parameters()
        ]
        loss = F.cross_entropy(functional_call(self._module, own, (self._x[run],)), self._y[run])
        gradients = torch.autograd.grad(loss, parameters)
        torch._foreach_copy_([tensor.grad[run] for tensor in self.trained], gradients)
        self._losses[run].copy_(loss.detach())

    def states(self) -> list[State]:
        return of_each_run(self._tensors)


def choose(
    model: nn.Module, state: State, x: Tensor, y: Tensor
) -> tuple[type[Single] | type[Graphed], int]:
    """What trains runs of this network fastest on this GPU, and how many of them at once.

    Measured once for an architecture and size of batch, in a second or two. A way that does not
    work here, or that gives other numbers, is not taken, and a warning says why.

    Args:
        state: where a trial starts.
        x: the first batch of every run, float [runs, batch, channels, height, width].
        y: its labels, int64 [runs, batch].
    """
    key = (str(model), x.shape, x.dtype, x.device)
    if key not in _chosen:
        _chosen[key] = _measured(model, state, x, y)
    return _chosen[key]


_chosen: dict[tuple, tuple[type[Single] | type[Graphed], int]] = {}


def _measured(
    model: nn.Module, state: State, x: Tensor, y: Tensor
) -> tuple[type[Single] | type[Graphed], int]:
    try:
        runs = _fitting(model, state, x, y)
        x, y = x[:runs], y[:runs]
        together = Graphed(model, [state] * runs, x.device)
        _compare(together, model, state, x, y)
        alone = Single(model, [state], x.device)
        if _seconds(together, x, y) < runs * _seconds(alone, x[:1], y[:1]):
            return Graphed, runs
    except (RuntimeError, ValueError) as error:  # of CUDA; of a net that shares a layer
        warnings.warn(f"runs are trained one by one, without CUDA graphs: {error}", stacklevel=2)
    return Single, 1


def _fitting(model: nn.Module, state: State, x: Tensor, y: Tensor) -> int:
    """As many of the runs as half of the GPU's free memory holds, by what one of them takes."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(x.device)
    one = Graphed(model, [state], x.device)
    one.losses(x[:1], y[:1])
    taken = torch.cuda.memory_reserved(x.device) - before
    del one
    return max(1, min(len(x), memory_available(x.device) // 2 // max(taken, 1)))


def _compare(together: Graphed, model: nn.Module, state: State, x: Tensor, y: Tensor) -> None:
    """RuntimeError unless two steps of every run do what two of one alone do."""
    batches = ((x.flip(-1), y.flip(-1)), (x, y))  # recorded with the first, played with another
    found = _two_steps(together, batches)
    for run in range(together.runs):
        own = [(x[run : run + 1], y[run : run + 1]) for x, y in batches]
        expected = _two_steps(Single(model, [state], x.device), own)
        for numbers, wanted in zip(found, expected, strict=True):
            if not (numbers[run] - wanted[0]).norm() <= TOLERANCE * wanted[0].norm():
                raise RuntimeError("their numbers are not those of a run alone")


def _two_steps(
    net: Single | Graphed, batches: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, gradients of the first step and states after it, each [runs, numbers]."""
    losses, gradients = [], []
    for x, y in batches:
        losses.append(net.losses(x, y).cpu())
        gradients.append(of_each_run(net.gradients()))
        with torch.no_grad():
            for tensor in net.trained:
                tensor.sub_(0.1 * tensor.grad)
    return torch.stack(losses, 1), _numbers(gradients[0]), _numbers(net.states())


def _numbers(states: Sequence[State]) -> Tensor:
    """[runs, numbers]"""
    return torch.stack([torch.cat([t.flatten().double() for t in s.values()]) for s in states])


def _seconds(net: Single | Graphed, x: Tensor, y: Tensor) -> float:
    """Of `STEPS` steps."""
    for steps in (3, STEPS):  # the first are slower
        torch.cuda.synchronize(x.device)
        begin = time.perf_counter()
        for _ in range(steps):
            net.losses(x, y)
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - begin


def _channels_last(stacked: Tensor) -> Tensor:
    """The same; of kernels [runs, out, in, height, width], each in channels-last memory."""
    if stacked.ndim != 5:
        return stacked
    return stacked.movedim(2, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 2)
