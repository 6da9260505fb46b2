"""Following a forward with symbols, by torch.fx: a graph that holds for inputs of every shape."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from rebasin_utils.errors import InputError
from rebasin_utils.symmetry.tracing.places import WRAPPED, cannot_trace, own_path

#: Torch's modules that are made of modules which have rules.
OPENED = (
    nn.Sequential,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)


_CONSTANT = "_tensor_constant"  # as torch.fx names them


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one call in the graph: torch's own, unless others stand in it."""
    home = type(module).__module__
    return home.startswith(("torch.nn", "torch.ao.nn")) and not isinstance(module, OPENED)


def follow(net: nn.Module, root: nn.Module) -> tuple[fx.Graph, dict[str, Tensor]]:
    """The graph of `root`'s forward, and the constants that it reads, by the names it uses.

    root: the net, or what `taking` gives for it. Symbols may be left in both: give a copy.

    Raises:
        InputError: when torch.fx cannot follow; the sentence names the module and the line.
    """
    tracer = _Tracer()
    try:
        graph = tracer.trace(root)
    except Exception as e:
        raise cannot_trace(".".join(tracer.stack[-1:]) or type(net).__name__, e) from e
    read = [node.target for node in graph.nodes if node.op == "get_attr"]
    return graph, {name: getattr(root, name) for name in read if name.startswith(_CONSTANT)}


def taking(net: nn.Module, inputs: int) -> nn.Module:
    """The net, or a module that calls it, so that the forward has `inputs` positional arguments."""
    parameters = inspect.signature(net.forward).parameters.values()
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return net if len(places) == inputs else _Fixed(net, inputs)


class _Tracer(fx.Tracer):
    """torch.fx's tracer, which remembers where it is when something goes wrong."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m)

    def call_module(
        self, m: nn.Module, forward: Callable, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self.stack.append(own_path(self.path_of_module(m)))
        result = super().call_module(m, forward, args, kwargs)
        self.stack.pop()  # not reached after an error, so the last entry is its place
        return result


class _Fixed(nn.Module):
    """Calls a model with so many positional arguments, so that its others keep their defaults."""

    def __new__(cls, net: nn.Module, inputs: int) -> _Fixed:
        kinds = {1: _Fixed, 2: _Fixed2, 3: _Fixed3}
        if inputs not in kinds:
            raise InputError(f"{inputs} inputs: give an example for every argument of the forward")
        return super().__new__(kinds[inputs])

    def __init__(self, net: nn.Module, inputs: int):
        super().__init__()
        setattr(self, WRAPPED, net)

    def forward(self, x: Tensor) -> Any:
        return self.the_traced_net(x)


class _Fixed2(_Fixed):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.the_traced_net(x, y)


class _Fixed3(_Fixed):
    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Any:
        return self.the_traced_net(x, y, z)
