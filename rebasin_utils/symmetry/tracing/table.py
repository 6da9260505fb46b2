"""The table of rules: `moves` and `layers` joined, and the look-up in it.

The look-up is by the very object that is called, never by a look-alike name.
"""

from __future__ import annotations

from torch import fx, nn

from rebasin_utils.symmetry.tracing import layers, moves
from rebasin_utils.symmetry.tracing.rules import Rule, is_pristine

RULES = moves.RULES | layers.RULES


def rule_for(node: fx.Node, module: nn.Module | None) -> Rule | None:
    """The rule for a node of the graph, whose module is `module`; None where there is none."""
    if module is not None:
        return RULES.by_module.get(type(module)) if is_pristine(module) else None
    if node.op == "call_method":
        return RULES.by_method.get(node.target)
    home, name = (getattr(node.target, a, "") for a in ("__module__", "__name__"))
    return RULES.by_function.get(node.target) or RULES.foreign.get((home, name))
