"""From a model to its `Spec`: capture the graph, walk it, read off the groups.

The walk replaces every tensor by a `Value` (`values`) and applies one rule per operation (`table`);
what it cannot prove safe is pinned to the identity with the reason. A graph is trusted only after
it has computed what the model computes (`trial`).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from rebasin_utils.errors import InputError
from rebasin_utils.symmetry.example import Example, as_example
from rebasin_utils.symmetry.permutation import Spec
from rebasin_utils.symmetry.tracing.capture import graph_of
from rebasin_utils.symmetry.tracing.copies import eval_copy
from rebasin_utils.symmetry.tracing.groups import Walked, read_groups
from rebasin_utils.symmetry.tracing.trial import Trial, generalised
from rebasin_utils.symmetry.tracing.values import solve
from rebasin_utils.symmetry.tracing.walk import State, Walk


def trace(model: nn.Module, example: Any, stream_tap: str = "last") -> Spec:
    """Derive the spec of a model; see `spec.PermutationSpec.trace`."""
    example = as_example(example)
    trial = Trial.of(model, example)
    try:
        inputs: int | Example = _by_place(example)
        state, walk = _walked(model, inputs, trial)
    except InputError:  # symbols do not get through: a real run may
        state, walk = _walked(model, example, trial)
        inputs = generalised(model, trial)
    walked = Walked(state.axes, walk.values, frozenset(walk.computing), solve(state.ledger))
    groups, pinned = read_groups(walked, stream_tap)
    if isinstance(inputs, Example):
        inputs = inputs.map(lambda x: x.detach().clone())  # it is the spec's own
    return Spec(groups, pinned, state.shapes, inputs)


def _by_place(example: Example) -> int:
    if example.names:
        raise InputError("only arguments that are given by place can be followed with symbols")
    return len(example.values)


def _walked(model: nn.Module, inputs: int | Example, trial: Trial) -> tuple[State, Walk]:
    net = eval_copy(model)
    state = State(net)
    graph = graph_of(net, inputs)
    return state, Walk(graph, trial.results(graph, symbolic=isinstance(inputs, int)), state)
