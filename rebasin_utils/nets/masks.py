"""Masks: which weights of a state survive pruning.

A mask is a `dict[parameter name, bool tensor]` over the prunable weights; True means kept. The
sparsity of a mask is the share of *prunable* weights that are zero (what the paper reports); the
global sparsity counts every parameter of the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import pandas as pd
import torch
from torch import Tensor, nn

from rebasin_utils.errors import InputError, require_state

State = dict[str, Tensor]
Mask = dict[str, Tensor]


def prunable(
    model: nn.Module, include_shortcuts: bool = False, include_classifier: bool = True
) -> tuple[str, ...]:
    """Names of the weights that are pruned: those of every convolution and linear layer.

    Left out are the names in `model.not_prunable` (the shortcut convolutions of the paper's ResNet)
    unless `include_shortcuts`. Oh et al. 2025 (arXiv 2504.05357) prune the shortcuts, and not the
    `classifier`.

    Raises:
        InputError: when the classifier shall be left out and there is no linear layer.
    """
    left_out = () if include_shortcuts else getattr(model, "not_prunable", ())
    if not include_classifier:
        left_out = (*left_out, f"{classifier(model)}.weight".removeprefix("."))
    names = (
        f"{name}.weight".removeprefix(".")
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    )
    return tuple(name for name in names if name not in left_out)


def classifier(model: nn.Module) -> str:
    """Name of the layer that makes the logits: the last linear one, as modules are listed.

    Raises:
        InputError: when there is no linear layer.
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise InputError(f"{type(model).__name__} has no linear layer, so none is its classifier")
    return linears[-1]


def dense_mask(state: State, names: tuple[str, ...]) -> Mask:
    """The mask that keeps everything.

    Raises:
        InputError: when `state` is none.
    """
    require_state(state)
    return {name: torch.ones_like(state[name], dtype=torch.bool) for name in names}


def global_magnitude(state: State, mask: Mask, keep: int) -> Mask:
    """Keep the `keep` weights of largest magnitude among those that `mask` still keeps.

    One threshold for the whole network (global L1 unstructured pruning). Equal magnitudes are kept
    in the order of the state, so that exactly `keep` weights survive.

    Raises:
        InputError: when `state` is none, or `keep` is negative or more than `mask` keeps.
    """
    require_state(state)
    alive = count(mask)
    if not 0 <= keep <= alive:
        raise InputError(f"keep = {keep}: the mask has {alive} weights left")
    scores = torch.cat([state[n].abs().masked_fill(~m, -1).flatten() for n, m in mask.items()])
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[scores.sort(descending=True, stable=True).indices[:keep]] = True
    pieces = chosen.split([m.numel() for m in mask.values()])
    return {n: piece.view_as(mask[n]) for n, piece in zip(mask, pieces, strict=True)}


def random_layerwise(mask: Mask, generator: torch.Generator) -> Mask:
    """A random mask with the same number of weights in every layer: the control of Section 10."""
    result = {}
    for name, kept in mask.items():
        order = torch.randperm(kept.numel(), generator=generator)
        result[name] = kept.flatten()[order.to(kept.device)].view_as(kept)
    return result


def apply(mask: Mask, state: State) -> State:
    """A new state whose masked-out weights are zero.

    Raises:
        InputError: when `state` is none.
    """
    require_state(state)
    return {n: t * mask[n] if n in mask else t.clone() for n, t in state.items()}


def rescaled(mask: Mask, state: State) -> State:
    """A new state whose masked tensors are divided by √density, each by its own layer's.

    A layer that keeps a share d of its weights hands on d times the variance it was initialised to
    hand on (He et al. 2015, equation 10); with many layers and few weights nothing arrives. For a
    fresh init: a trained one has found its own scale. A layer without weights stays as it is.

    Raises:
        InputError: when `state` is none.
    """
    require_state(state)
    new = {name: t.clone() for name, t in state.items()}
    for name, kept in mask.items():
        if kept.any():
            new[name] /= (kept.sum() / kept.numel()).sqrt().to(new[name])
    return new


def sparse_aware(mask: Mask, state: State, basis: Literal["layer", "neuron"] = "layer") -> State:
    """A new state whose masked tensors are rescaled to the fan-in that the mask leaves.

    Every unit's weights lose their mean and get the standard deviation √(2 / fan-in), the fan-in
    being what the mask keeps of that unit; a unit that keeps nothing is zero (Evci et al. 2022).
    This is what the code released with Adnan et al. 2025 means its scaled runs to do, and never
    does, as it looks the weights up by another name.

    Args:
        basis: whose standard deviation the weights are divided by: their own unit's ("neuron"), or
            that of all of the layer.

    Raises:
        InputError: when `state` is none.
    """
    rescaled = apply(mask, state)
    for name, kept in mask.items():
        weights = state[name].flatten(1)
        fan_in = kept.flatten(1).sum(1, keepdim=True)
        spread = weights.std(1, keepdim=True) if basis == "neuron" else weights.std()
        centred = weights - weights.mean(1, keepdim=True)
        scaled = centred / spread.clamp_min(1e-12) * (2 / fan_in.clamp_min(1)).sqrt()
        rescaled[name] = scaled.view_as(state[name]) * kept
    return rescaled


def count(mask: Mask) -> int:
    """How many weights the mask keeps."""
    return sum(int(kept.sum()) for kept in mask.values())


def sparsity(mask: Mask) -> float:
    """Share of the prunable weights that are zero."""
    return 1 - count(mask) / sum(kept.numel() for kept in mask.values())


def global_sparsity(mask: Mask, model: nn.Module) -> float:
    """Share of *all* parameters of the network (biases, batch norm, shortcuts) that are zero."""
    zeros = sum(kept.numel() for kept in mask.values()) - count(mask)
    return zeros / sum(p.numel() for p in model.parameters())


def overlap(first: Mask, second: Mask) -> float:
    """Share of the weights kept by `first` that `second` keeps too; by chance 1 - sparsity."""
    both = sum(int((first[name] & second[name]).sum()) for name in first)
    return both / max(count(first), 1)


def report(mask: Mask) -> pd.DataFrame:
    """Per layer: `weights`, `kept`, `density`; the last row is the whole mask."""
    rows: list[Mapping] = [
        {"layer": name.removesuffix(".weight"), "weights": kept.numel(), "kept": int(kept.sum())}
        for name, kept in mask.items()
    ]
    total = {"layer": "all prunable", "weights": sum(r["weights"] for r in rows)}
    table = pd.DataFrame([*rows, total | {"kept": sum(r["kept"] for r in rows)}])
    return table.assign(density=table["kept"] / table["weights"])
