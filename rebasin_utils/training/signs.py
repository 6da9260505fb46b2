"""Signed masks: which weights of a net survive pruning, and on which side of zero.

A signed mask s is a `dict[parameter name, int8 tensor]` of −1, 0 and 1, where 0 is what the mask
prunes. The claim of Oh et al. 2025 (arXiv 2504.05357): put on a fresh init φ, as |φ| · s, it trains
to where it was taken from. `symmetry.permutation.permute` moves it like everything that is shaped
like a state.

A net's function does not say all of its signs. A unit before a batch norm may be negated together
with its γ, so that a sign means something relative to that of γ only; `canonical` makes every such
γ positive. (Layer norm's mean is over units: a single one cannot be negated.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rebasin_utils.errors import InputError, require_state
from rebasin_utils.nets import masks
from rebasin_utils.nets.masks import Mask, State
from rebasin_utils.symmetry.tracing.capture import capture
from rebasin_utils.symmetry.tracing.places import place_of

SignedMask = dict[str, Tensor]


def of(state: Mapping[str, Tensor], mask: Mask) -> SignedMask:
    """The signs of the weights that `mask` keeps, of the state that was trained under it.

    Those of any other state on a mask are `of(masks.apply(mask, state), mask)`.

    Raises:
        InputError: when it is no state, or was not trained under the mask: a kept weight is zero,
            as after a later round of pruning, or a pruned one is not, as before an earlier one; or
            when a kept weight is not a number.
    """
    require_state(state)
    signs = {}
    for name, kept in mask.items():
        signs[name] = state[name].sign().nan_to_num(0).to(torch.int8)
        without = int((kept & (signs[name] == 0)).sum())
        if without:
            raise InputError(
                f"{name}: {without} of {int(kept.sum())} kept numbers are zero or not a number, so "
                "they have no sign; take the state that was trained under this mask"
            )
        left = int((~kept & (state[name] != 0)).sum())
        if left:
            raise InputError(
                f"{name}: {left} of {int((~kept).sum())} pruned numbers are not zero, so the state "
                "was not trained under this mask; if its signs are meant, apply the mask first"
            )
    return signs


def mask_of(signs: SignedMask) -> Mask:
    """What the signed mask keeps."""
    return {name: s != 0 for name, s in signs.items()}


def report(signs: SignedMask) -> pd.DataFrame:
    """`masks.report` of what it keeps, and `positive`: the share of positive signs among that."""
    table = masks.report(mask_of(signs))
    positive = [int((s > 0).sum()) for s in signs.values()]
    return table.assign(positive=[*positive, sum(positive)] / table["kept"])


def transfer(init: State, signs: SignedMask) -> State:
    """A new state with the magnitudes of `init` and these signs: |φ| · s.

    What `signs` does not name is as in `init`. The signs of biases or of a classifier that is not
    pruned (`of_biases`, `of_classifier`) are handed on by naming them: `transfer(init, signs | …)`.

    Raises:
        InputError: when `init` is no state, or `signs` names what it does not have.
    """
    require_state(init, "init")
    for name in signs:
        if name not in init:
            raise InputError(f"{name}: the signed mask has it and the init has not")
    return {n: t.abs() * signs[n] if n in signs else t.clone() for n, t in init.items()}


def of_biases(model: nn.Module, state: State, mask: Mask) -> SignedMask:
    """The signs of the biases of those layers that `mask` prunes; of none that has no bias.

    Raises:
        InputError: when one of them is zero.
    """
    biases = [f"{name.removesuffix('weight')}bias" for name in mask]
    named = dict(model.named_parameters())
    return of(state, masks.dense_mask(state, tuple(name for name in biases if name in named)))


def of_classifier(model: nn.Module, state: State) -> SignedMask:
    """The signs of the classifier's weights and biases, all of them: for one that is not pruned.

    Raises:
        InputError: when `state` is none, one of them is zero, or the model has no linear layer.
    """
    require_state(state)
    name = masks.classifier(model)
    own = (f"{name}.weight".removeprefix("."), f"{name}.bias".removeprefix("."))
    return of(state, masks.dense_mask(state, tuple(n for n in own if n in state)))


def shuffled(signs: SignedMask, generator: torch.Generator) -> SignedMask:
    """The same mask, every layer's signs dealt anew: a control that keeps how many are positive.

    generator: on the CPU.
    """
    new = {}
    for name, s in signs.items():
        of_kept = s[s != 0]
        order = torch.randperm(len(of_kept), generator=generator).to(s.device)
        new[name] = torch.zeros_like(s).masked_scatter_(s != 0, of_kept[order])
    return new


def agreement(first: Mapping[str, Tensor], second: Mapping[str, Tensor], mask: Mask) -> float:
    """Share of the weights kept by `mask` whose sign is the same in both; by chance a half.

    first, second: states or signed masks. A weight of zero agrees with nothing.
    """
    same = sum(
        int((first[name].sign() * second[name].sign() > 0)[kept].sum())
        for name, kept in mask.items()
    )
    return same / max(masks.count(mask), 1)


def canonical(model: nn.Module, state: State) -> State:
    """The same function with γ ≥ 0 in every batch norm that follows a layer directly.

    Units with γ < 0 are negated: their weights and bias before the norm, its γ and running mean. β
    stays. A layer that another module sees as well, or that is used twice, stays as it is, and a
    linear layer's outputs are taken to be [batch, units].

    Raises:
        InputError: when `state` is none, or the model's graph cannot be traced.
    """
    require_state(state)
    new = {name: t.clone() for name, t in state.items()}
    for layer, norm in _normed_layers(model):
        gamma = state[f"{norm}.weight"]
        factor = torch.where(gamma < 0, -1, 1).to(gamma)
        for name in (f"{norm}.weight", f"{norm}.running_mean", f"{layer}.weight", f"{layer}.bias"):
            if name in new:
                by_unit = factor.view(-1, *[1] * (new[name].ndim - 1))
                new[name] = new[name] * by_unit + 0.0  # a pruned weight is no -0.0
    return new


def negative_gammas(model: nn.Module, state: State) -> float:
    """Share of all γ of the model's batch norms that are below zero; 0 when there are none.

    Raises:
        InputError: when `state` is none.
    """
    require_state(state)
    gammas = [
        state[f"{name}.weight".removeprefix(".")]
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.weight is not None
    ]
    return sum(int((g < 0).sum()) for g in gammas) / max(sum(g.numel() for g in gammas), 1)


def _normed_layers(model: nn.Module) -> list[tuple[str, str]]:
    """(layer, batch norm) by name, where nothing but that norm sees the layer's output."""
    graph = capture(model, 1)
    calls = Counter(place_of(node) for node in graph.graph.nodes if node.op == "call_module")
    return [
        (place_of(layer), place_of(norm))
        for norm in graph.graph.nodes
        for layer in norm.all_input_nodes
        if _is(graph, norm, _BatchNorm)
        and _is(graph, layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
        and graph.get_submodule(norm.target).weight is not None
        and len(layer.users) == calls[place_of(layer)] == calls[place_of(norm)] == 1
    ]


def _is(graph: fx.GraphModule, node: fx.Node, kind: type | tuple[type, ...]) -> bool:
    return node.op == "call_module" and isinstance(graph.get_submodule(node.target), kind)
