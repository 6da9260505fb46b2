"""Plain chains of linear layers, recognised in a model's graph.

A chain flattens its images and computes linear layers in turn; after each, but for the last, there
may be one norm layer and then ReLUs. Nothing branches, and no layer is used twice.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple
from weakref import WeakKeyDictionary

from torch import fx, nn


class Norm(NamedTuple):
    """A batch or layer norm, by its name in the model.

    over: the axis of activations [runs, units, batch] that it takes means over.
    momentum: by which a batch norm's running statistics move; None for a layer norm.
    """

    name: str
    over: int
    eps: float
    momentum: float | None


class Layer(NamedTuple):
    """A linear layer, by its parameters' names, and what follows it: norm, then ReLU."""

    weight: str
    bias: str | None
    norm: Norm | None = None
    relu: bool = False


#: A study asks for its one model's layers at every training and every evaluation.
_KNOWN: WeakKeyDictionary[nn.Module, list[Layer]] = WeakKeyDictionary()


def chain(model: nn.Module) -> list[Layer]:
    """The linear layers of the model in order; none when it is not such a chain.

    A model is looked at once: its modules must not be exchanged for others after that.
    """
    if model not in _KNOWN:
        _KNOWN[model] = _layers(model)
    return _KNOWN[model]


def _layers(model: nn.Module) -> list[Layer]:
    known = (nn.Linear, nn.BatchNorm1d, nn.LayerNorm, nn.ReLU, nn.Flatten)
    if not all(isinstance(m, known) for m in model.modules() if not list(m.children())):
        return []
    try:
        nodes = list(fx.Tracer().trace(model).nodes)
    except Exception:  # whatever cannot be traced
        return []
    if not all(node.args == (before,) for before, node in pairwise(nodes)):
        return []
    calls = nodes[1:-1]
    if not calls or any(node.op != "call_module" or node.kwargs for node in calls):
        return []
    flatten, *modules = (model.get_submodule(node.target) for node in calls)
    if not isinstance(flatten, nn.Flatten) or (flatten.start_dim, flatten.end_dim) != (1, -1):
        return []
    layers: list[Layer] = []
    for node, module in zip(calls[1:], modules, strict=True):
        norm = _norm(node.target, module)
        if isinstance(module, nn.Linear):
            bias = None if module.bias is None else f"{node.target}.bias"
            layers.append(Layer(f"{node.target}.weight", bias))
        elif isinstance(module, nn.ReLU) and layers:
            layers[-1] = layers[-1]._replace(relu=True)
        elif norm and layers and not (layers[-1].norm or layers[-1].relu):
            layers[-1] = layers[-1]._replace(norm=norm)
        else:
            return []
    if not layers or layers[-1].norm or layers[-1].relu:
        return []
    names = [layer.weight for layer in layers] + [layer.norm.name for layer in layers if layer.norm]
    return layers if len(set(names)) == len(names) else []


def _norm(name: str, module: nn.Module) -> Norm | None:
    """None when the module is no norm layer, or one without γ, β or running statistics."""
    if not isinstance(module, nn.BatchNorm1d | nn.LayerNorm):
        return None
    if module.weight is None or module.bias is None:
        return None
    if isinstance(module, nn.LayerNorm):
        return Norm(name, 1, module.eps, None) if len(module.normalized_shape) == 1 else None
    whole = module.track_running_stats and module.momentum is not None
    return Norm(name, 2, module.eps, module.momentum) if whole else None
