"""What a stage is: a kind of artifact, from the settings that want it to the row that it leaves.

A stage lives in one file and says there which nodes it wants, what each depends on, how they are
computed, what is kept of them and what they cost. The plan, the runner, `status` and the tables
know stages by `plugins.stages` and nothing of any one of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any, ClassVar, Protocol

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from rebasin_utils.nets.data import Split
from rebasin_utils.nets.masks import State
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.store import Key
from rebasin_utils.symmetry.matching import Matching
from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.training.evaluate import Metrics
from rebasin_utils.training.ranks import Ranks
from rebasin_utils.training.recipes import Recipe
from rebasin_utils.training.train import Job, Trained

Scalar = str | int | float


@dataclass(frozen=True)
class Node:
    """One artifact of a study; two nodes are equal when their keys are.

    settings: of the study that it belongs to. at: where in the study it stands (role, seed,
    sparsity, …); what does not apply, or is as in the grid, is left out. parents: what it is
    computed from. epochs: what it costs to make, beyond its parents. made_by: the run that stores
    this one on its way, and after which it costs nothing.
    """

    key: Key
    settings: Settings = field(compare=False, repr=False)
    at: Mapping[str, Scalar] = field(compare=False)
    parents: tuple[Node, ...] = field(default=(), compare=False, repr=False)
    epochs: int = field(default=0, compare=False)
    made_by: Node | None = field(default=None, compare=False, repr=False)

    @property
    def stage(self) -> str:
        return self.key.stage

    @property
    def seed(self) -> int:
        """The pair that it belongs to."""
        return self.at["seed"]


@dataclass(frozen=True)
class Made:
    """What was computed for a node: a record for JSON (`metrics`, `seconds`, …), and tensors."""

    node: Node
    record: dict[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Reader(Protocol):
    """What can be read of a study; nothing here computes or trains."""

    settings: Settings
    model: nn.Module
    spec: PermutationSpec

    def node(self, stage: str, **at: Scalar) -> Node: ...
    def nodes(self, stage: str) -> list[Node]: ...
    def record(self, node: Node) -> dict[str, Any]: ...
    def tensors(self, node: Node) -> dict[str, Tensor]: ...
    def state(self, node: Node, part: str = "final") -> State: ...
    def network(self, node: Node, part: str = "final") -> nn.Module: ...
    def net_of(self, state: State) -> nn.Module: ...
    def split(self, name: str) -> Split: ...


class Context(Reader, Protocol):
    """What a stage may ask for while it computes."""

    device: torch.device
    ranks: Ranks | None

    def fresh(self, seed: int) -> nn.Module: ...
    def byproducts(self, node: Node) -> list[Node]: ...
    def train(
        self, nodes: Sequence[Node], jobs: Sequence[Job], recipe: Recipe, until: int | None = None
    ) -> list[Trained]: ...
    def evaluate(self, states: Sequence[State]) -> list[Metrics]: ...
    def match(self, moving: State, reference: State, images: int | None) -> Matching: ...


class Stage:
    """A kind of artifact. Every method but `wanted` and `compute` has a sensible default.

    name: also the folder in the store, and the name of its part of the settings, if it has one.
    version: raised by one whenever it would compute something else from the same settings.
    keeps: which parts of a net an artifact holds, of `final` and `mask`; what else it may hold is
    small. Part: its own settings. columns: of its rows, beyond `columns.COLUMNS`, with their types.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    keeps: ClassVar[tuple[str, ...]] = ()
    Part: ClassVar[type[BaseModel] | None] = None
    columns: ClassVar[Mapping[str, str]] = {}

    def check(self, settings: Settings) -> None:
        """Refuse settings that this stage cannot serve, with an `InputError`."""

    def ready(self, run: Context) -> None:
        """Refuse, before any work, what only the model and the images can show."""

    def wanted(self, settings: Settings) -> Iterable[Node]:
        """The nodes that these settings ask for; their parents are planned with them."""
        raise TypeError(f"the stage {self.name} does not say what it wants")

    def compute(self, run: Context, nodes: Sequence[Node]) -> Iterable[Made]:
        """Compute nodes that are `alike`, and by-products; each is stored as it is handed over."""
        raise TypeError(f"the stage {self.name} computes nothing")

    def alike(self, node: Node) -> Hashable:
        """Nodes for which this is equal are computed in one call."""
        return node.key

    def lots(self, nodes: Sequence[Node], together: bool) -> list[list[Node]]:
        """The nodes dealt out, a lot for one worker each, a lot's nodes in order.

        together: whether runs of this model are faster when they are stepped together. The lots
        must not depend on how many workers there are.
        """
        ordered = sorted(nodes, key=lambda node: node.seed)
        return [list(lot) for _, lot in groupby(ordered, key=lambda node: node.seed)]

    def rows(self, node: Node, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What a stored node adds to the study's table."""
        return []

    def cost(self, node: Node) -> int:
        """What it costs to compute, in this stage's own unit of pace."""
        return node.epochs or 1

    def node(
        self,
        settings: Settings,
        label: str,
        at: Mapping[str, Scalar],
        depends_on: Mapping[str, Any],
        parents: tuple[Node, ...] = (),
        epochs: int = 0,
        made_by: Node | None = None,
    ) -> Node:
        """A node of this stage, with the key of what it depends on.

        label: for the eye. depends_on: resolved facts for JSON, besides its parents.
        """
        label = f"{settings.model.label}-w{settings.model.width}-{label}"
        keys = tuple(parent.key for parent in parents)
        key = Key.of(self.name, self.version, label, depends_on, keys)
        return Node(key, settings, at, parents, epochs, made_by)


def chunks(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items, the last one shorter (`itertools.batched` of Python 3.12)."""
    left = iter(items)
    while lot := list(islice(left, size)):
        yield lot
