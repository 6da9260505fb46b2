"""Writing down one real run of a forward as a graph.

torch.fx follows a forward with symbols, which cannot say how many dimensions they have, what type
they are, or which way an `if` goes. Here the forward really runs, on an example, and every call of
a torch function or of one of torch's layers is written down as it happens (`TorchFunctionMode`), so
that Python code may ask its tensors anything that no permutation of units can change.

Two things are kept from being taken for constants. A *size* read off a tensor remembers where it
comes from (`Size`), so that the graph serves batches of other sizes. A *number* read off a tensor
(by `bool`, `item` and the like) is refused where the tensor depends on the model's state; where it
depends on the inputs alone, the graph checks that every other input gives the same number.
"""

from __future__ import annotations

import operator
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch.fx.node import has_side_effect, map_aggregate
from torch.overrides import TorchFunctionMode

from rebasin_utils.errors import InputError
from rebasin_utils.symmetry.example import Example
from rebasin_utils.symmetry.tracing.nested import tensors_in
from rebasin_utils.symmetry.tracing.places import cannot_trace, own_line
from rebasin_utils.symmetry.tracing.rules import METADATA
from rebasin_utils.symmetry.tracing.symbolic import is_leaf


def record(net: nn.Module, example: Example) -> tuple[fx.Graph, dict[str, Tensor]]:
    """The graph of one run, and the constants that it reads, by the name it reads them under.

    The graph takes the example's tensors and gives all tensors of the output, in order. The run may
    leave its traces in `net`: give a copy.

    Raises:
        InputError: when the forward takes a way that depends on the model's state, or does what
            cannot be written down; the sentence names the module and the line.
    """
    recorder = _Recorder(net)
    values = tuple(recorder.enter(v, i, example) for i, v in enumerate(example.values))
    try:
        with torch.no_grad(), recorder.layers(), recorder:
            output = Example(values, example.names).call(net)
        recorder.graph.output(tuple(recorder.node_of(t) for t in tensors_in(output)))
    except Exception as e:
        raise cannot_trace(recorder.place or type(net).__name__, e) from e
    return recorder.graph, recorder.constants


class Size(int):
    """A whole number read off a tensor's shape, with the node of the graph that gives it."""

    def __new__(cls, value: int, graph: fx.Graph, call: Callable[[], fx.Node]) -> Size:
        size = super().__new__(cls, value)
        size.graph, size._call = graph, call
        return size

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return int, (int(self),)

    @cached_property
    def node(self) -> fx.Node:
        """Written into the graph when something first depends on it."""
        return self._call()


def _arithmetic(name: str) -> None:
    """`Size` op whole number, from either side, is a Size again."""
    apply, plain = getattr(operator, name), getattr(int, f"__{name}__")

    def result(size: Size, left: int, right: int) -> Size:
        def call() -> fx.Node:
            args = tuple(x.node if isinstance(x, Size) else x for x in (left, right))
            return size.graph.call_function(apply, args)

        return Size(plain(left, right), size.graph, call)

    def forward(self: Size, other: Any) -> Any:
        known = type(other) in (int, Size)
        return result(self, self, other) if known else plain(self, other)

    def backward(self: Size, other: Any) -> Any:
        return result(self, other, self) if type(other) in (int, Size) else NotImplemented

    setattr(Size, f"__{name}__", forward)
    setattr(Size, f"__r{name}__", backward)


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    _arithmetic(_name)


class Refused(InputError):
    """A graph that was recorded does not hold for this input."""


@has_side_effect
def same(found: Any, traced: Any, where: str) -> None:
    """Stands in the graph where the recorded run read `traced` off its inputs."""
    if found != traced:
        raise Refused(
            f"the forward reads {found!r} off this input{where}, where it read {traced!r} off the "
            "traced example, so it may take another way: trace with an example like this input"
        )


def setitem_(x: Tensor, index: Any, item: Any) -> Tensor:
    """`x[index] = item`, as a function in the graph."""
    x[index] = item
    return x


class _Recorder(TorchFunctionMode):
    """Writes every call into `graph`, and knows which node every tensor comes from."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self._nodes: dict[int, fx.Node] = {}  # of a tensor, by its id
        self._alive: list[Tensor] = [*_tensor_attributes(net).values()]  # so that ids stay taken
        self._hidden: set[fx.Node] = set()  # what depends on the model's state
        self._stale: set[int] = set()  # tensors that were overwritten under another name
        state = net.state_dict(keep_vars=True).values()
        self._movable = {id(t) for t in state if isinstance(t, Tensor) and t.numel() > 1}
        self._names = {id(m): path for path, m in reversed(list(net.named_modules()))}
        self._attributes = {id(t): path for path, t in reversed(_tensor_attributes(net).items())}
        self._stack: list[tuple[str, type]] = []
        self._within = False  # a call that is one node

    @property
    def place(self) -> str:
        """The path of the module that runs, or at which the run broke off."""
        return self._stack[-1][0] if self._stack else ""

    def enter(self, value: Any, at: int, example: Example) -> Any:
        """One argument of the run: a tensor becomes an input of the graph."""
        name = example.names[at] if example.names else f"x{at}"
        if isinstance(value, Tensor):
            value = value.clone()
            self._know(value, self.graph.placeholder(name))
        elif any(True for _ in tensors_in(value)):
            raise InputError(
                f"the example's argument {name} holds tensors in a container: give every tensor as "
                "an argument of its own"
            )
        return value

    @contextmanager
    def layers(self) -> Iterator[None]:
        """Within it, a call of one of torch's layers is one node."""
        original = nn.Module.__call__

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            path = self._names.get(id(module))
            if self._within or path is None:
                return original(module, *args, **kwargs)
            if path and is_leaf(module):
                return self._write(
                    partial(original, module), partial(self.graph.call_module, path), args, kwargs
                )
            depth = len(self._stack)
            self._stack.append((path, type(module)))
            result = original(module, *args, **kwargs)
            del self._stack[depth:]  # not reached after an error, so the last entry is its place
            return result

        with mock.patch.object(nn.Module, "__call__", call):
            yield

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._within or not self._concerns(args, kwargs):
            return func(*args, **kwargs)
        name = _name_of(func)
        if getattr(func, "__name__", "") == "__set__" and name == "data":
            raise InputError("it gives a tensor other memory (by x.data = …)")
        if name in METADATA and not (name == "type" and args[1:]):  # which converts it
            return self._asked(name, func(*args, **kwargs), args)
        if func is Tensor.__setitem__:
            func = setitem_
        return self._write(func, partial(_call, self.graph, func), args, kwargs)

    def node_of(self, tensor: Tensor) -> fx.Node:
        """The node that gives a tensor; one of which nothing is known is a constant."""
        if id(tensor) in self._stale:
            raise InputError("it reads a tensor that it has overwritten in place through a view")
        if id(tensor) not in self._nodes:
            path = self._attributes.get(id(tensor))
            if path is not None:
                node = self.graph.get_attr(path)
            else:
                name = f"_tensor_constant{len(self.constants)}"
                self.constants[name] = tensor.clone()
                node = self.graph.call_method("clone", (self.graph.get_attr(name),))
            self._know(tensor, node)
            if id(tensor) in self._movable:
                self._hidden.add(node)
        return self._nodes[id(tensor)]

    def _know(self, result: Any, node: fx.Node) -> None:
        """From now on `node` gives this tensor, or these tensors."""
        if isinstance(result, Tensor):
            self._nodes[id(result)] = node
            self._alive.append(result)
            self._stale.discard(id(result))
        elif isinstance(result, tuple | list):
            for i, part in enumerate(result):
                if any(True for _ in tensors_in(part)):
                    self._know(
                        part, self._placed(self.graph.call_function(operator.getitem, (node, i)))
                    )
        elif any(True for _ in tensors_in(result)):
            raise InputError(f"a call gives a {type(result).__name__} of tensors")

    def _placed(self, node: fx.Node) -> fx.Node:
        """The node, which knows in which module it stands and whether it depends on the state."""
        node.meta["nn_module_stack"] = {path: (path, kind) for path, kind in self._stack}
        if node.op == "call_module" or self._hidden.intersection(node.all_input_nodes):
            self._hidden.add(node)
        return node

    def _concerns(self, args: tuple, kwargs: dict) -> bool:
        """Whether a call is about something known: an activation, the model's own, or a size."""
        return any(
            isinstance(x, Size) or id(x) in self._nodes or id(x) in self._attributes
            for x in _leaves((args, kwargs))
        )

    def _asked(self, name: str, value: Any, args: tuple) -> Any:
        """What a tensor is, with sizes that know where they come from."""
        node = self._nodes.get(id(args[0]))
        if node is None or node.op == "get_attr":
            return value

        def size(n: int, method: str, *dims: int) -> Size:
            return Size(n, self.graph, lambda: self.graph.call_method(method, (node, *dims)))

        if name in ("numel", "nelement"):
            return size(value, "numel")
        if name in ("size", "shape") and isinstance(value, torch.Size):
            return torch.Size(size(n, "size", d) for d, n in enumerate(value))
        return size(value, "size", args[1]) if name == "size" and len(args) > 1 else value

    def _write(self, run: Callable, call: Callable, args: tuple, kwargs: dict) -> Any:
        """Run one call, and write it down as the node that `call` makes."""
        self._within = True
        try:
            operands = [x for x in _leaves((args, kwargs)) if isinstance(x, Tensor)]
            versions = [x._version for x in operands]
            written = map_aggregate((args, kwargs), self._written)  # before any is overwritten
            result = run(*args, **kwargs)
            node = self._placed(call(*written))
            results = list(tensors_in(result))
            for x, version in zip(operands, versions, strict=True):
                if x._version != version:
                    if not any(x is r for r in results):
                        raise InputError(f"{node.target} writes into its argument")
                    self._stale |= {id(t) for t in self._alive if t is not x and _share(t, x)}
            self._know(result, node)
            if not results and result is not None:
                self._check_number(node, result)
            return result
        finally:
            self._within = False

    def _written(self, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return self.node_of(leaf)
        return leaf.node if isinstance(leaf, Size) else leaf

    def _check_number(self, node: fx.Node, number: Any) -> None:
        """A number that was read off a tensor must be the same for all states and inputs."""
        asked = str(node.target).strip("_")
        if node in self._hidden:
            raise InputError(
                "its control flow depends on the data, and a permutation could change its path"
                if asked == "bool"
                else f"it reads numbers off its activations (by {asked}), and a permutation could "
                "change them"
            )
        if not isinstance(number, bool | int | float | list | tuple):
            raise InputError(f"it hands its input to something that is not torch (by {asked})")
        where = own_line(traceback.extract_stack())
        self.graph.call_function(same, (node, number, where))


def _call(graph: fx.Graph, func: Callable, args: tuple, kwargs: dict) -> fx.Node:
    """The node of a function's call, in the form in which torch.fx writes it."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return graph.call_function(getattr, (args[0], _name_of(func)))
    if func is Tensor.__getitem__:
        return graph.call_function(operator.getitem, args)
    if getattr(Tensor, name, None) is func:
        return graph.call_method(name, args, kwargs)
    if getattr(Tensor, f"__{name}__", None) is func:
        return graph.call_function(getattr(operator, name), args)
    return graph.call_function(func, args, kwargs)


def _name_of(func: Callable) -> str:
    """The name of a function, or of the property that it reads or writes."""
    name = getattr(func, "__name__", "")
    return func.__self__.__name__ if name in ("__get__", "__set__") else name


def _leaves(arguments: Any) -> list[Any]:
    found: list[Any] = []
    map_aggregate(arguments, found.append)
    return found


def _tensor_attributes(net: nn.Module) -> dict[str, Tensor]:
    """The net's own tensors, in its state or not, by their paths."""
    return {
        f"{path}.{name}" if path else name: x
        for path, module in net.named_modules()
        for name, x in (module._parameters | module._buffers | vars(module)).items()
        if isinstance(x, Tensor)
    }


def _share(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
