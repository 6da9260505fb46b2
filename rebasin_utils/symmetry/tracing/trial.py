"""Trying a captured graph: does it compute what the model computes?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from rebasin_utils.errors import InputError
from rebasin_utils.symmetry.example import Example
from rebasin_utils.symmetry.tracing.capture import capture
from rebasin_utils.symmetry.tracing.copies import eval_copy
from rebasin_utils.symmetry.tracing.nested import real_tensors
from rebasin_utils.symmetry.tracing.recording import Refused
from rebasin_utils.symmetry.tracing.rules import Shape

#: How far, relative to its largest entry, the output of a right graph may be from the model's: by
#: another order of sums, or by what a part under autocast rounds away.
EXACT, BFLOAT16 = 1e-3, 3e-2


@dataclass(frozen=True, eq=False)
class Trial:
    """One run of a model, for its graphs to be measured by.

    example: its inputs. expected: the real tensors of its output. name: of the model, for people.
    random: whether it drew random numbers. autocast: whether it computed a part under autocast,
    which no graph shows: graphs compute that part in full precision.
    """

    example: Example
    expected: Sequence[Tensor]
    name: str
    random: bool
    autocast: bool

    @classmethod
    def of(cls, model: nn.Module, example: Example) -> Trial:
        """Run a copy of the model in eval mode.

        Raises:
            InputError: when it does not run on the example.
        """
        net, name = eval_copy(model), type(model).__name__
        before = _generator_states()
        try:
            with torch.no_grad(), _autocast_seen() as seen:
                expected = real_tensors(example.run(net))
        except Exception as e:
            raise InputError(f"{name} does not run on this example: {one_line(e)}") from e
        drawn = not all(map(torch.equal, before, _generator_states()))
        return cls(example, expected, name, drawn, bool(seen))

    def results(self, graph: fx.GraphModule, symbolic: bool) -> dict[fx.Node, Any]:
        """Every node's result on the example, tensors replaced by their `Shape`.

        symbolic: whether the graph takes all arguments of the forward, or those that are tensors.

        Raises:
            InputError: when the graph does not compute what the model computes.
        """
        results: dict[fx.Node, Any] = {}

        class Recorder(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                result = super().run_node(n)
                results[n] = map_aggregate(
                    result, lambda x: Shape(tuple(x.shape)) if isinstance(x, Tensor) else x
                )
                return result

        example = self.example.map(Tensor.clone)
        try:
            with torch.no_grad():
                found = Recorder(graph).run(*(example.values if symbolic else example.tensors))
        except Refused:
            raise
        except Exception as e:
            raise InputError(f"the traced graph of {self.name} does not run: {one_line(e)}") from e
        if not _alike(self.expected, real_tensors(found), BFLOAT16 if self.autocast else EXACT):
            raise InputError(
                f"the traced graph of {self.name} does not compute what the model computes: "
                + (
                    "its forward draws random numbers, also in eval mode"
                    if self.random
                    else "its forward does something that is no call of a torch function"
                )
            )
        return results


def generalised(model: nn.Module, trial: Trial) -> Example:
    """The trial's example, which knows whether the graph of its run serves other batch sizes, too.

    Raises:
        InputError: when the graph does not even serve other inputs of the same shapes.
    """
    example = trial.example
    batch = len(example.tensors[0]) if example.tensors[0].ndim else 0
    if _serves(model, trial, example.map(_other)) is False:
        raise InputError(
            f"the traced graph of {trial.name} computes what the model computes on the example "
            "only: its forward does something that is no call of a torch function"
        )
    twice = example.map(lambda x: torch.cat([x, x]) if x.ndim and len(x) == batch else x)
    return example if _serves(model, trial, twice) else replace(example, only_batch=batch)


def _serves(model: nn.Module, trial: Trial, others: Example) -> bool | None:
    """Whether the graph of the trial's run computes on other inputs what the model does.

    None where nobody can say: the model does not take such inputs, or the graph refuses them.
    """
    try:
        other = Trial.of(model, others)
    except InputError:
        return None
    try:
        other.results(capture(model, trial.example), symbolic=False)
    except Refused:
        return None
    except InputError:
        return False
    return True


def one_line(error: Exception) -> str:
    """What an error says, for a sentence."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _generator_states() -> list[Tensor]:
    of_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *of_gpus]


@contextmanager
def _autocast_seen() -> Iterator[list[str]]:
    """A list that is empty as long as nothing within has switched autocast on or off."""
    seen: list[str] = []
    enter, devices = torch.autocast.__enter__, ("cpu", "cuda")

    def watched(context: torch.autocast) -> Any:
        before = [torch.is_autocast_enabled(device) for device in devices]
        result = enter(context)
        if before != [torch.is_autocast_enabled(device) for device in devices]:
            seen.append(context.device)
        return result

    with mock.patch.object(torch.autocast, "__enter__", watched):
        yield seen


def _other(x: Tensor) -> Tensor:
    """Another input of the same kind: other numbers, or the same indices in another order."""
    if x.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        return torch.randn(x.shape, generator=generator).to(x.device, x.dtype)
    return x.flip(-1) if x.ndim else x


def _alike(expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float) -> bool:
    scale = max((a.abs().max().item() for a in expected if a.numel()), default=0.0)
    return len(expected) == len(found) and all(
        a.shape == b.shape and not (a - b).abs().max() > tolerance * scale + 1e-6
        for a, b in zip(expected, found, strict=True)
        if a.numel() or a.shape != b.shape
    )
