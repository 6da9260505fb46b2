"""What a study consists of: all that its stages want, with everything that it depends on.

    dense A, dense B -> matching -> connectivity (the path between A and B)
    dense A -> imp round 1 -> round 2 -> … (branches land on the target sparsities)
    rewind: dense A or B after k epochs
    rewind, imp, matching -> sparse (one run for every method, sparsity, rewind epoch, pair)
    imp, matching -> overlaps (what A's ticket and B's own have in common)
    dense, imp, sparse -> segment (the path between two solutions of one net)
    dense, imp, sparse -> diversity (how differently the members of an ensemble answer)
    dense, imp, matching, sparse -> plane (the map through three nets)

Nothing here computes anything: a `Plan` is a function of the `Settings` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

from rebasin_utils.errors import InputError
from rebasin_utils.study import plugins
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stage import Node, Scalar, Stage
from rebasin_utils.study.store import Key


class Plan:
    """The artifacts of `settings`.

    Raises:
        InputError: when the settings ask for what a stage cannot do.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.stages: dict[str, Stage] = plugins.stages(settings.plugins)
        for stage in self.stages.values():
            stage.check(settings)

    def nodes(self, stage: str) -> list[Node]:
        """All artifacts of a stage; what one depends on stands before it."""
        return list(self._nodes[self._known(stage)].values())

    def all_nodes(self, stages: Iterable[str] | None = None) -> list[Node]:
        """All artifacts of some stages, or of all."""
        chosen = self.stages if stages is None else stages
        return [node for stage in chosen for node in self.nodes(stage)]

    def node(self, stage: str, **at: Scalar) -> Node:
        """The artifact of a stage that stands there: `node("dense", role="A", seed=0)`.

        Raises:
            InputError: when none does, or several and none exactly.
        """
        fits = [n for n in self.nodes(stage) if at.items() <= n.at.items()]
        found = [n for n in fits if n.at == at] or fits
        if len(found) != 1:
            place = ", ".join(f"{name} = {value!r}" for name, value in at.items())
            there = "; ".join(str(dict(n.at)) for n in (found or self.nodes(stage))[:3])
            raise InputError(
                f"{stage}: {len(found) or 'no'} artifacts of this study are at {place}; "
                f"there are {there} …"
                if there
                else f"{stage}: this study has no such artifacts"
            )
        return found[0]

    def byproducts(self, node: Node) -> list[Node]:
        """What is stored while a node is computed."""
        return self._byproducts.get(node.key, [])

    def tasks(self, stage: str, together: bool) -> list[list[Node]]:
        """The stage's artifacts in lots for one worker each; see `Stage.lots`."""
        return self.stages[stage].lots(self.nodes(stage), together)

    def _known(self, stage: str) -> str:
        if stage not in self.stages:
            raise InputError(f"stage = {stage!r}: choose from {', '.join(self.stages)}")
        return stage

    @cached_property
    def _nodes(self) -> dict[str, dict[Key, Node]]:
        found: dict[str, dict[Key, Node]] = {name: {} for name in self.stages}

        def add(nodes: Sequence[Node]) -> None:
            for node in nodes:
                if node.key not in found[node.stage]:
                    add(node.parents)
                    found[node.stage][node.key] = node

        for stage in self.stages.values():
            add(list(stage.wanted(self.settings)))
        return found

    @cached_property
    def _byproducts(self) -> dict[Key, list[Node]]:
        found: dict[Key, list[Node]] = {}
        for nodes in self._nodes.values():
            for node in nodes.values():
                if node.made_by is not None:
                    found.setdefault(node.made_by.key, []).append(node)
        return found
