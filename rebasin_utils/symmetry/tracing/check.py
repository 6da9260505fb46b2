"""Testing a spec: permute every group at random and compare what the model computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rebasin_utils.errors import InputError
from rebasin_utils.symmetry.example import Example, as_example
from rebasin_utils.symmetry.permutation import Spec, dense_name, permute, random_permutation
from rebasin_utils.symmetry.tracing.copies import eval_copy, refuse_what_hides
from rebasin_utils.symmetry.tracing.nested import is_real, real_tensors

#: A comparison that other weights change by no more than this says nothing of a permutation.
BLIND = 1e-5


def check(model: nn.Module, spec: Spec, example: Any, seed: int = 0) -> float:
    """Relative change of the outputs, max|a - b| / max|a|, when every group moves at random.

    The test is of the architecture, not of the numbers in it: every floating-point tensor of the
    state (weights, batch-norm affine and running statistics, layer scales) is replaced by random
    numbers, all-positive tensors by positive ones, and so are floating-point inputs. Defaults such
    as a running mean of 0 or a layer scale of 1e-6 would hide errors. Runs in eval mode and float64
    (float32 where the model insists on it) on copies. With several outputs the worst counts. A
    third run, with other numbers in all that the groups move, shows that the outputs tell.

    Raises:
        InputError: when there is nothing to move or nothing to compare: no groups, no output of
            real numbers, outputs that do not depend on what the groups move. When an output is not
            finite or is zero up to rounding, or the model does not run.
    """
    example, name = as_example(example), type(model).__name__
    refuse_what_hides(model)
    if not spec.groups:
        raise InputError(f"this spec of {name} has no groups: there is nothing to move or to prove")
    try:
        return _check(model, spec, example, seed, torch.float64)
    except InputError:
        raise
    except (RuntimeError, TypeError):  # its forward casts to another precision, or its device lacks
        try:
            return _check(model, spec, example, seed, torch.float32)
        except (RuntimeError, TypeError) as e:
            text = " ".join(str(e).split())[:200]
            raise InputError(f"{name} does not run on this example: {text}") from e


def _check(model: nn.Module, spec: Spec, example: Example, seed: int, dtype: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(seed)
    state = _randomised(model, generator, dtype)
    example = example.map(lambda x: _noise(x, generator, dtype))
    moved = permute(spec, random_permutation(spec, generator), state)
    tensors = {member.tensor for group in spec.groups.values() for member in group.members}
    others = _randomised(model, generator, dtype)
    other = {
        key: others[key] if dense_name(spec, key) in tensors else x.clone()
        for key, x in state.items()
    }
    before, after, elsewhere = (_outputs(model, s, example, dtype) for s in (state, moved, other))
    if not before:
        raise InputError(
            f"there is nothing to compare: no output of {type(model).__name__} holds real numbers, "
            "so that no permutation can be proved by them (give the net before its argmax)"
        )
    error, sight = (
        max(_change(a, b) for a, b in zip(before, outputs, strict=True))
        for outputs in (after, elsewhere)
    )
    if sight <= BLIND:
        raise InputError(
            f"there is nothing to compare: the outputs of {type(model).__name__} hardly depend on "
            f"what the groups move (other numbers there change them by {sight:.0e})"
        )
    return error


def _outputs(
    model: nn.Module, state: Mapping[str, Tensor], example: Example, dtype: torch.dtype
) -> list[Tensor]:
    """What a fresh copy of the model computes with a state; its own constants are cast.

    It may write into the state, which is not to be used again.
    """
    net = eval_copy(model)
    constants = {n: b.to(dtype) for n, b in net.named_buffers() if n not in state and is_real(b)}
    with torch.no_grad():
        return real_tensors(example.run(_with_state(net, {**state, **constants})))


def _with_state(net: nn.Module, state: dict[str, Tensor]) -> Callable[..., Any]:
    return lambda *args, **kwargs: functional_call(net, state, args, kwargs, tie_weights=False)


def _change(a: Tensor, b: Tensor) -> float:
    """max|a - b| / max|a|; infinite where b is not finite or has another shape."""
    scale = a.abs().max().item() if a.numel() else 0.0
    if not 1e-10 < scale < float("inf"):
        raise InputError(f"check cannot judge an output whose largest entry is {scale:g}")
    if a.shape != b.shape:
        return float("inf")
    change = (a - b).abs().max().item() / scale
    return float("inf") if change != change else change


def _randomised(
    net: nn.Module, generator: torch.Generator, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Random numbers in place of every floating-point tensor of the state."""
    drawn: dict[int, Tensor] = {}
    state = {}
    for name, tensor in net.state_dict(keep_vars=True).items():
        if not is_real(tensor):
            state[name] = tensor.clone()
            continue
        if id(tensor) not in drawn:
            if (tensor > 0).all():
                new = torch.rand(tensor.shape, generator=generator).add_(0.5)
            else:
                new = torch.randn(tensor.shape, generator=generator)
                if tensor.ndim > 1 and tensor.numel():
                    new.div_(tensor[0].numel() ** 0.5)  # keeps signals at scale 1
            drawn[id(tensor)] = new.to(tensor.device, dtype)
        state[name] = drawn[id(tensor)]
    return state


def _noise(x: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    real = x.is_floating_point()
    return torch.randn(x.shape, generator=generator).to(x.device, dtype) if real else x
