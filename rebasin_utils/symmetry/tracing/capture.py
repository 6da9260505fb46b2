"""Capturing a model's graph, in eval mode, without touching the model.

Two ways: `symbolic` holds for inputs of every shape and is tried first; `recording` writes down
what a run on an example did, for forwards that ask their tensors what they are.
"""

from __future__ import annotations

from torch import Tensor, fx, nn

from rebasin_utils.symmetry.example import Example
from rebasin_utils.symmetry.tracing.attention import spell_out
from rebasin_utils.symmetry.tracing.copies import eval_copy
from rebasin_utils.symmetry.tracing.recording import record, same
from rebasin_utils.symmetry.tracing.symbolic import follow, taking


def capture(model: nn.Module, inputs: int | Example) -> fx.GraphModule:
    """The graph of the model's forward, on copies of the model's tensors.

    Args:
        inputs: as `Spec.inputs` says: the number of positional arguments, which are followed with
            symbols, or the example whose run is written down. The graph takes the arguments that
            are tensors, by their place.

    Raises:
        InputError: when the forward depends on the data or does what cannot be followed; the
            sentence names the module and the line.
    """
    return graph_of(eval_copy(model), inputs)


def graph_of(net: nn.Module, inputs: int | Example) -> fx.GraphModule:
    """`capture` for a net that may be taken apart: the graph holds the net's own tensors."""
    name = type(net).__name__
    spell_out(net)
    scratch = eval_copy(net)
    if isinstance(inputs, int):
        root = taking(net, inputs)
        graph, constants = follow(scratch, taking(scratch, inputs))
    else:
        root, like = net, next((p for p in net.parameters() if p.is_floating_point()), None)
        graph, constants = record(scratch, inputs.map(lambda x: _placed(x, like)))
        _refuse_other_batches(graph, inputs.only_batch)
    for key, constant in constants.items():
        setattr(root, key, constant)
    return fx.GraphModule(root, graph, name)


def _refuse_other_batches(graph: fx.Graph, size: int | None) -> None:
    """Where a graph holds for one batch size, it says so for others."""
    arguments = [node for node in graph.nodes if node.op == "placeholder"]
    if size is not None:
        with graph.inserting_after(arguments[-1]):
            batch = graph.call_method("size", (arguments[0], 0))
        with graph.inserting_after(batch):
            graph.call_function(same, (batch, size, " (its number of samples)"))


def _placed(x: Tensor, like: Tensor | None) -> Tensor:
    """An input on the net's device and in its precision."""
    if like is None:
        return x
    return x.to(like.device, like.dtype if x.is_floating_point() else x.dtype)
