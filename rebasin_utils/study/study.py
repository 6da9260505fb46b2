"""A study: its settings, its plan, and what its store holds of it.

Reading and computing are two things. Whatever is read here was computed before: what is missing is
said, never trained. `compute` is the one door through which artifacts are made.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from rebasin_utils.errors import InputError
from rebasin_utils.nets import data, own_nets
from rebasin_utils.nets.data import Split
from rebasin_utils.nets.devices import device_name, machine, reproducible, torch_device
from rebasin_utils.nets.masks import State
from rebasin_utils.nets.models import MODELS
from rebasin_utils.study import columns, together
from rebasin_utils.study.plan import Plan
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.shelf import Shelf, package_shelf
from rebasin_utils.study.stage import Made, Node, Scalar
from rebasin_utils.study.store import Store
from rebasin_utils.symmetry.matching import Matching
from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.training.evaluate import Metrics
from rebasin_utils.training.ranks import Ranks
from rebasin_utils.training.recipes import Recipe
from rebasin_utils.training.train import Job, Trained
from rebasin_utils.versions import own_version

Progress = Callable[[int], None]


class Study:
    """Settings, a store, a device. To be opened, neither data nor store need be there.

    ranks: the processes that compute it together; None: this one alone.

    Raises:
        InputError: when the device is not there, or a stage cannot do what the settings ask.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store | Path | str,
        device: str = "auto",
        shelf: Shelf | None = None,
    ):
        self.settings = settings
        self.shelf = package_shelf() if shelf is None else shelf
        self.store = store if isinstance(store, Store) else Store(store)
        self.device = torch_device(device)
        self.plan = Plan(settings)
        self.ranks: Ranks | None = None
        self._checked = False
        self._others: dict[Settings, Study] = {}

    # ---------------------------------------------------------------- what it is made of

    @cached_property
    def model(self) -> nn.Module:
        """The architecture; its weights are of no meaning."""
        return self.fresh(seed=0)

    def fresh(self, seed: int) -> nn.Module:
        """The architecture with the init of a seed."""
        return own_nets.build(**self._net, seed=seed, not_prunable=self.settings.model.not_prunable)

    @cached_property
    def _net(self) -> dict[str, Any]:
        """What `own_nets` is told of the architecture."""
        model, source = self.settings.model, self._source
        channels, height, width = source.shape
        pool = self.settings.data.pool
        return {
            "name": model.name,
            "image_shape": (channels, height // pool, width // pool),
            "classes": source.classes,
            "width": model.width,
            "args": model.args,
        }

    @property
    def _source(self) -> data.Source:
        s = self.settings.data
        return data.source_of(s.source, s.reading, s.stream)

    @cached_property
    def spec(self) -> PermutationSpec:
        """The model's permutation spec, traced and proved."""
        example = torch.zeros(2, *self._net["image_shape"])
        tap = self.settings.as_released.stream_tap
        spec = PermutationSpec.trace(self.model, example, stream_tap=tap)
        spec.prove(self.model, example)
        return spec

    def split(self, name: str) -> Split:
        """The "train" or the "test" images, on the study's device."""
        return self._splits[name]

    @cached_property
    def _splits(self) -> dict[str, Split]:
        s = self.settings.data
        how = {
            "scale_pad": s.scale_pad,
            "reading": s.reading,
            "mean": s.mean,
            "std": s.std,
            "stream": s.stream,
            "loader_workers": s.loader_workers,
        }
        train = data.load(s.source, "train", s.pool, s.train_limit, **how)
        if s.limit is not None:
            train = train.balanced(s.limit)
        test = data.load(s.source, "test", s.pool, s.test_limit, **how)
        return {"train": train.to(self.device), "test": test.to(self.device)}

    # ---------------------------------------------------------------- reading

    def node(self, stage: str, **at: Scalar) -> Node:
        """The artifact of a stage that stands there; see `Plan.node`."""
        return self.plan.node(stage, **at)

    def nodes(self, stage: str) -> list[Node]:
        """All artifacts of a stage."""
        return self.plan.nodes(stage)

    def record(self, node: Node) -> dict[str, Any]:
        """What was measured when a node was computed, and with what.

        From the store, or else from the shelf; a record that ships says so (`shipped`).

        Raises:
            InputError: when neither holds it.
        """
        record = self._found(node)
        if record is None:
            raise InputError(_absent(node))
        return record

    def _found(self, node: Node) -> dict[str, Any] | None:
        record = self.store.record(node.key)
        return self.shelf.record(node.key) if record is None else record

    def tensors(self, node: Node, prefix: str = "") -> dict[str, Tensor]:
        """The tensors of a node whose names begin with `prefix`, on the CPU.

        Raises:
            InputError: when the store does not hold it.
        """
        tensors = self.store.tensors(node.key, prefix)
        if tensors is None:
            raise InputError(_absent(node))
        return tensors

    def state(self, node: Node, part: str = "final") -> State:
        """The network that a node stored ("final"), or its "mask", in the model's order."""
        tensors = self.tensors(node, f"{part}/")
        return {n: tensors[f"{part}/{n}"] for n in self._names if f"{part}/{n}" in tensors}

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(self.model.state_dict())

    def network(self, node: Node, part: str = "final") -> nn.Module:
        """The same as a module on the study's device, in eval mode."""
        return self.net_of(self.state(node, part))

    def net_of(self, state: State) -> nn.Module:
        """A state as a module on the study's device, in eval mode."""
        net = self.fresh(seed=0)
        net.load_state_dict(state)
        return net.to(self.device).eval()

    def results(self) -> pd.DataFrame:
        """One row per trained net that the store holds; the columns are `columns.COLUMNS`.

        Accuracies are shares in [0, 1], losses nats, seconds the run's share of its batch's time.
        """
        rows, more = [], {}
        for stage in self.plan.stages.values():
            more |= stage.columns
            for node in self.plan.nodes(stage.name):
                record = self._found(node)
                rows += stage.rows(node, record) if record is not None else []
        return columns.table(rows, more)

    def missing(self, stages: Iterable[str] | None = None) -> list[Node]:
        """The artifacts of these stages, or of all, that the store lacks."""
        return [node for node in self.plan.all_nodes(stages) if node.key not in self.store]

    def unread(self, stages: Iterable[str] | None = None) -> list[Node]:
        """Those whose records are neither in the store nor on the shelf."""
        return [node for node in self.missing(stages) if self.shelf.record(node.key) is None]

    def shipped(self, stages: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """The records that are read from the shelf, since the store lacks them."""
        found = (self.shelf.record(node.key) for node in self.missing(stages))
        return [record for record in found if record is not None]

    def said_of_shipped(self) -> str:
        """What of this study ships and is shown as it shipped, in a sentence; nothing of one."""
        found = [record for record in self.shipped() if record.get("metrics")]
        if not found:
            return ""
        (about,) = (a for a in self.shelf.about if a["preset"] == found[0]["shipped"])
        days = sorted(record["made"][:10] for record in found)
        torch_versions = ", ".join(sorted({record["versions"]["torch"] for record in found}))
        computers = ", ".join(sorted({_computer(record, about["exported_on"]) for record in found}))
        return (
            f"{len(found)} results ship with the package: computed {days[0]} to {days[-1]} on "
            f"{computers}, torch {torch_versions}, by {about['command']!r}"
        )

    # ---------------------------------------------------------------- computing

    def check(self) -> None:
        """Refuse whatever can be refused before any work is.

        Raises:
            InputError: when the data set's files are missing, the model does not fit its images, a
                batch is larger than the training set, or the store cannot be written.
        """
        s = self.settings
        self.store.prepare()
        own_nets.check(**self._net)  # also refuses images that are too small
        if s.model.name not in MODELS:
            _ = self.spec  # the user's own net: traced and proved before it is trained
        samples = len(self.split("train"))
        for name, recipe in (("dense", s.dense), ("imp", s.imp)):
            if recipe.batch_size > samples:
                raise InputError(
                    f"{name}.batch_size = {recipe.batch_size}: there are {samples} training images"
                )
        for stage in self.plan.stages.values():
            stage.ready(_Context(self, lambda epochs: None))
        for node in self.plan.all_nodes():
            if node.settings != self.settings:
                self._owner(node).check()
        self._checked = True

    def _owner(self, node: Node) -> Study:
        """The study in whose terms a node is computed: this one, or one on other data."""
        if node.settings == self.settings:
            return self
        if node.settings not in self._others:
            self._others[node.settings] = self.sibling(node.settings)
        return self._others[node.settings]

    def sibling(self, settings: Settings) -> Study:
        """A study with other settings, of the same store, computed by the same."""
        other = Study(settings, self.store, str(self.device), self.shelf)
        other.ranks = self.ranks
        return other

    def compute(self, nodes: Sequence[Node], progress: Progress = lambda epochs: None) -> None:
        """Compute and store those of the nodes, all of one stage, that are missing.

        What they depend on is computed first where the store lacks it or holds it damaged.
        """
        if not self._checked:  # once: what befalls the store later is no mistake of the user's
            self.check()
        for other, theirs in groupby(nodes, key=self._owner):
            if other is not self:
                other.compute(list(theirs), progress)
        nodes = [node for node in nodes if self._owner(node) is self]
        lacking = [node for node in nodes if node.key not in self.store]
        inside = {node.key for node in lacking}
        before = [p for node in lacking for p in node.parents if p.key not in inside]
        self._ensure(before)  # now, so that no lock is held while it is waited for
        with ExitStack() as held:
            held.enter_context(self.store.troubles_in_a_sentence())
            held.enter_context(reproducible(self.device))
            for digest in sorted(key.digest for key in inside):
                held.enter_context(self.store.lock(digest))
            lacking = [node for node in lacking if node.key not in self.store]
            for alike in self._in_order(lacking):
                stage = self.plan.stages[alike[0].stage]
                for made in stage.compute(_Context(self, progress), alike):
                    self._put(made)

    def _ensure(self, nodes: Iterable[Node]) -> None:
        for node in dict.fromkeys(nodes):
            while not self.store.is_sound(node.key):
                self.compute([node])

    def _in_order(self, nodes: Sequence[Node]) -> Iterator[list[Node]]:
        """Nodes that are alike together, and none before what it depends on."""
        kinds: dict[Any, int] = {}

        def rank(node: Node) -> tuple[int, int]:
            kind = self.plan.stages[node.stage].alike(node)
            return _depth(node), kinds.setdefault(kind, len(kinds))

        for _, alike in groupby(sorted(nodes, key=rank), key=rank):
            yield list(alike)

    def _put(self, made: Made) -> None:
        node = made.node
        provenance = {
            "stage": node.stage,
            "seed": node.seed,
            "settings": node.settings.model_dump(mode="json"),
            "parents": [parent.key.path for parent in node.parents],
            "device": device_name(self.device),
            "machine": machine(),
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "rebasin": own_version(),
            },
        }
        self.store.put(node.key, {**provenance, **made.record}, made.tensors)
        self.store.checkpoint(node.key).unlink(missing_ok=True)


class _Context:
    """A study as its stages see it while they compute: they read it, and train."""

    def __init__(self, study: Study, progress: Progress):
        self._study, self._progress = study, progress

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def byproducts(self, node: Node) -> list[Node]:
        return self._study.plan.byproducts(node)

    def train(
        self, nodes: Sequence[Node], jobs: Sequence[Job], recipe: Recipe, until: int | None = None
    ) -> list[Trained]:
        """Train a job for every node; each keeps its progress in the store until it is done."""
        store = self._study.store
        kept = [
            replace(job, checkpoint=store.checkpoint(node.key))
            for node, job in zip(nodes, jobs, strict=True)
        ]
        return self._do("train", kept, recipe, until, progress=self._progress)

    def evaluate(self, states: Sequence[State]) -> list[Metrics]:
        """Accuracy and loss of nets on the test images."""
        return self._do("evaluate", states)

    def match(self, moving: State, reference: State, images: int | None) -> Matching:
        """π of the first net's units to the second's, on as many training images."""
        return self._do("match", moving, reference, images)

    def _do(self, deed: str, *arguments: Any, **mine: Any) -> Any:
        return together.do(self._study, deed, *arguments, **mine)


def _depth(node: Node) -> int:
    """How many artifacts of its own stage a node builds upon, one after the other."""
    return max((1 + _depth(p) for p in node.parents if p.stage == node.stage), default=0)


def _computer(record: Mapping[str, Any], exported_on: str) -> str:
    """Where a record was computed; those before records said so, where they were exported."""
    computer = record.get("machine", exported_on)
    return computer if record["device"] == "cpu" else f"{record['device']}, {computer}"


def _absent(node: Node) -> str:
    return f"{node.key.path} is not computed yet: run the study first (rebasin run)"
