"""A study: its stages computed on demand, its results in a store, its table.

`Study(settings)` is what notebooks and the runner hold. Whatever it is asked for, it reads from the
store, or computes and stores first. A run is computed once for every study that contains it.
"""

from __future__ import annotations

import math
import platform
import time
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from rebasin_utils import analyses, data, masks, matching, models, pruning, rows
from rebasin_utils.devices import device_name, reproducible, torch_device
from rebasin_utils.errors import InputError
from rebasin_utils.masks import Mask, State
from rebasin_utils.permutation import (
    Permutation,
    PermutationSpec,
    permute,
    random_permutation,
)
from rebasin_utils.plan import ANALYSES, STAGES, Node, Plan, derive_seed
from rebasin_utils.settings import Settings
from rebasin_utils.store import Artifact, Store
from rebasin_utils.training import Job, Metrics, Recipe, Trained, evaluate, train_many

Progress = Callable[[int], None]


class Study:
    """Settings, a store, a device.

    Raises:
        InputError: at once, when the data set's files are missing, the model does not fit its
            images, or the store cannot be written.
    """

    def __init__(self, settings: Settings, store: Store | Path | str, device: str = "auto"):
        self.settings = settings
        self.store = store if isinstance(store, Store) else Store(store)
        self.device = torch_device(device)
        self.plan = Plan(settings)
        self._check()

    # ---------------------------------------------------------------- what a study is made of

    @cached_property
    def model(self) -> nn.Module:
        """The architecture; its weights are of no meaning."""
        return self._build(seed=0)

    @cached_property
    def train_images(self) -> data.Images:
        s = self.settings
        return data.load(s.dataset, "train", s.pool, s.train_limit).to(self.device)

    @cached_property
    def test_images(self) -> data.Images:
        s = self.settings
        return data.load(s.dataset, "test", s.pool, s.test_limit).to(self.device)

    @cached_property
    def spec(self) -> PermutationSpec:
        """The model's permutation spec, traced and proved."""
        example = torch.zeros(2, *self._image_shape)
        spec = PermutationSpec.trace(self.model, example, stream_tap=self.settings.stream_tap)
        spec.prove(self.model, example)
        return spec

    def state(self, node: Node, part: str = "final") -> State:
        """The network that a node stored ("final"), or its "mask"."""
        tensors = self.load(node).tensors
        names = self.model.state_dict()
        return {n: tensors[f"{part}/{n}"] for n in names if f"{part}/{n}" in tensors}

    def network(self, node: Node, part: str = "final") -> nn.Module:
        """The same as a module on the study's device, in eval mode."""
        net = self._build(seed=0)
        net.load_state_dict(self.state(node, part))
        return net.to(self.device).eval()

    def match_batches(self) -> Iterator[Tensor]:
        """The training images, without augmentation, on which activations are matched."""
        images = self.train_images
        if self.settings.match_samples is not None:
            images = images.head(self.settings.match_samples)
        return (x for x, _ in data.in_order(images, 500))

    def mask(self, seed: int, sparsity: float, role: str = "A") -> Mask:
        """The ticket of net A (or B) of pair `seed`."""
        return self.state(self.plan.ticket(role, seed, sparsity), "mask")

    def permutation(self, seed: int) -> Permutation:
        """π of pair `seed`: π(A) ≈ B."""
        return self.load(self.plan.matching(seed)).tensors

    # ---------------------------------------------------------------- computing

    def load(self, node: Node) -> Artifact:
        """The artifact, computed first where the store lacks it or holds it damaged."""
        while (artifact := self.store.get(node.key)) is None:
            self.compute([node])
        return artifact

    def missing(self, stages: Iterable[str] = STAGES) -> list[Node]:
        """The artifacts of these stages that the store lacks."""
        return [n for stage in stages for n in self.plan.nodes(stage) if n.key not in self.store]

    def compute(self, nodes: Sequence[Node], progress: Progress = lambda epochs: None) -> None:
        """Compute and store those of the nodes, all of one stage, that are missing."""
        lacking = [node for node in nodes if node.key not in self.store]
        inside = {node.key.digest for node in lacking}
        for node in lacking:
            for parent in node.parents:
                if parent.key.digest not in inside:
                    self.load(parent)  # now, so that no lock is held while it is waited for
        with ExitStack() as held:
            held.enter_context(self.store.troubles_in_a_sentence())
            held.enter_context(reproducible(self.device))
            for digest in sorted(inside):
                held.enter_context(self.store.lock(digest))
            lacking = [node for node in lacking if node.key not in self.store]
            for _, level in groupby(sorted(lacking, key=_level), key=_level):
                level = list(level)
                if level[0].stage in ANALYSES:
                    self._measure(level)
                else:
                    getattr(self, f"_{level[0].stage}")(level, progress)

    def _dense(self, nodes: list[Node], progress: Progress) -> None:
        jobs = [self._dense_job(n, tuple({0, *self.settings.saved_epochs})) for n in nodes]
        done = self._train(jobs, self.settings.dense, progress)
        for node, trained, test in zip(nodes, done, self._test(done), strict=True):
            for epoch, state in trained.snapshots.items():
                rewind = self.plan.rewind(node.role, node.seed, epoch)
                self._put(rewind, {"seconds": 0.0}, _named("final", state))
            self._put_run(node, trained, test, {"final": trained.state})

    def _rewind(self, nodes: list[Node], progress: Progress) -> None:
        """The first epochs of dense runs again, for states that were not kept."""
        epoch = nodes[0].rewind_epoch
        jobs = [self._dense_job(node, (epoch,)) for node in nodes]
        for node, trained in zip(
            nodes, self._train(jobs, self.settings.dense, progress, until=epoch), strict=True
        ):
            self._put(node, {"seconds": trained.seconds}, _named("final", trained.state))
            self.store.checkpoint(node.key).unlink(missing_ok=True)

    def _dense_job(self, node: Node, snapshots: tuple[int, ...]) -> Job:
        return Job(
            self._build(derive_seed("init", node.role, node.seed)).state_dict(),
            derive_seed("data", node.role, node.seed),
            snapshots=snapshots,
            checkpoint=self.store.checkpoint(node.key),
        )

    def _imp(self, nodes: list[Node], progress: Progress) -> None:
        step = nodes[0].round
        self._refuse_diverged([node.parents[0] for node in nodes])
        names = masks.prunable(self.model, self.settings.prune_shortcuts)
        states, before = [], []
        for node in nodes:
            states.append(self.state(node.parents[-1]))
            first = len(node.parents) == 1
            before.append(
                masks.dense_mask(states[-1], names)
                if first
                else self.state(node.parents[-1], "mask")
            )
        pruned, done = zip(
            *pruning.prune_and_tune(
                self.model,
                states,
                before,
                [derive_seed("imp", n.role, n.seed) for n in nodes],
                step,
                self.settings.imp,
                self.train_images,
                augment=self.settings.augment,
                checkpoints=[self.store.checkpoint(n.key) for n in nodes],
                progress=progress,
            ),
            strict=True,
        )
        for node, mask, trained, test in zip(nodes, pruned, done, self._test(done), strict=True):
            self._put_run(node, trained, test, {"final": trained.state, "mask": mask}, mask)

    def _matching(self, nodes: list[Node], progress: Progress) -> None:
        s = self.settings
        for node in nodes:
            begin = time.monotonic()
            self._refuse_diverged(node.parents)
            moving, reference = (self.network(parent) for parent in node.parents)
            matched = matching.match_activations(
                self.spec,
                moving,
                reference,
                self.match_batches(),
                objective=s.match_on,
                std=s.match_std,
            )
            record = {"metrics": matched.quality(), "seconds": time.monotonic() - begin}
            self._put(node, record, matched.permutation)

    def _measure(self, nodes: list[Node]) -> None:
        for node in nodes:
            begin = time.monotonic()
            metrics = analyses.MEASURE[node.stage](self, node)
            self._put(node, {"metrics": metrics, "seconds": time.monotonic() - begin}, {})

    def _sparse(self, nodes: list[Node], progress: Progress) -> None:
        used = [self._mask_for(node) for node in nodes]
        jobs = [
            replace(self._sparse_job(node, mask), checkpoint=self.store.checkpoint(node.key))
            for node, mask in zip(nodes, used, strict=True)
        ]
        done = self._train(jobs, self.settings.sparse_recipe(nodes[0].rewind_epoch), progress)
        for node, mask, trained, test in zip(nodes, used, done, self._test(done), strict=True):
            self._put_run(node, trained, test, {"final": trained.state}, mask)

    def _sparse_job(self, node: Node, mask: Mask) -> Job:
        order = (node.order,) if node.order else ()
        return Job(self.state(node.parents[0]), derive_seed("sparse", node.seed, *order), mask)

    def retrace(self, run: Node) -> dict[int, State]:
        """The states of a sparse run after every epoch, its start included; trained again."""
        recipe = self.settings.sparse_recipe(run.rewind_epoch)
        job = replace(
            self._sparse_job(run, self._mask_for(run)), snapshots=tuple(range(recipe.epochs + 1))
        )
        (trained,) = self._train([job], recipe, lambda epochs: None)
        return trained.snapshots

    def _mask_for(self, node: Node) -> Mask:
        """What a sparse run's method makes of A's ticket."""
        mask = self.mask(node.seed, node.sparsity)
        generator = torch.Generator().manual_seed(
            derive_seed(node.method, node.seed, node.sparsity)
        )
        if node.method == "permuted":
            return permute(self.spec, self.load(node.parents[2]).tensors, mask)
        if node.method == "random_permutation":
            return permute(self.spec, random_permutation(self.spec, generator), mask)
        if node.method == "random_mask":
            return masks.random_layerwise(mask, generator)
        return mask

    # ---------------------------------------------------------------- the table

    def results(self) -> pd.DataFrame:
        """One row per trained net that the store holds; the columns are `rows.COLUMNS`.

        Accuracies are shares in [0, 1], losses nats, seconds the run's share of its batch's time.
        """
        nodes = [node for stage in rows.STAGES for node in self.plan.nodes(stage)]
        records = ((node, self.store.record(node.key)) for node in nodes if rows.is_result(node))
        return rows.table([rows.row(self.settings, n, record) for n, record in records if record])

    # ---------------------------------------------------------------- helpers

    def _build(self, seed: int) -> nn.Module:
        s = self.settings
        classes = data.source_of(s.dataset).classes
        return models.build(s.model, self._image_shape, classes, s.width, seed)

    @property
    def _image_shape(self) -> tuple[int, int, int]:
        channels, height, width = data.source_of(self.settings.dataset).shape
        return channels, height // self.settings.pool, width // self.settings.pool

    def _check(self) -> None:
        """Whatever can be refused before any work is."""
        s = self.settings
        self._build(seed=0)  # refuses images that are too small
        samples = len(data.load(s.dataset, "train", s.pool, s.train_limit))
        for name, recipe in (("dense", s.dense), ("imp", s.imp)):
            if recipe.batch_size > samples:
                raise InputError(
                    f"{name}.batch_size = {recipe.batch_size}: there are {samples} training images"
                )
        data.load(s.dataset, "test", s.pool, s.test_limit)

    def _refuse_diverged(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            if self.store.record(node.key).get("metrics", {}).get("diverged"):
                raise InputError(
                    f"net {node.role} of pair {node.seed} diverged in its dense training, so it "
                    f"can be neither matched nor pruned; try a smaller dense.lr than "
                    f"{self.settings.dense.lr}"
                )

    def _train(
        self, jobs: list[Job], recipe: Recipe, progress: Progress, until: int | None = None
    ) -> list[Trained]:
        return train_many(
            self.model,
            jobs,
            recipe,
            self.train_images,
            augment=self.settings.augment,
            until=until,
            progress=progress,
        )

    def _test(self, done: Sequence[Trained]) -> list[Metrics]:
        return evaluate(self.model, [trained.state for trained in done], self.test_images)

    def _put_run(
        self,
        node: Node,
        trained: Trained,
        test: Metrics,
        parts: dict[str, State],
        mask: Mask | None = None,
    ) -> None:
        metrics = {
            "test_accuracy": test.accuracy,
            "test_loss": test.loss if math.isfinite(test.loss) else None,
            "diverged": trained.diverged,
            "prunable_sparsity": masks.sparsity(mask) if mask else 0.0,
            "global_sparsity": masks.global_sparsity(mask, self.model) if mask else 0.0,
        }
        losses = [loss if math.isfinite(loss) else None for loss in trained.losses]
        record = {"metrics": metrics, "train_losses": losses, "seconds": trained.seconds}
        tensors = [_named(part, state) for part, state in parts.items()]
        self._put(node, record, dict(ChainMap(*tensors)))
        self.store.checkpoint(node.key).unlink(missing_ok=True)

    def _put(self, node: Node, record: dict, tensors: dict[str, Tensor]) -> None:
        provenance = {
            "stage": node.stage,
            "seed": node.seed,
            "settings": self.settings.model_dump(mode="json"),
            "parents": [parent.key.path for parent in node.parents],
            "device": device_name(self.device),
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "rebasin": version("rebasin"),
            },
        }
        self.store.put(node.key, {**provenance, **record}, tensors)


def _named(part: str, state: State) -> dict[str, Tensor]:
    """A state under the names that it has in an artifact."""
    return {f"{part}/{name}": tensor for name, tensor in state.items()}


def _level(node: Node) -> tuple:
    """Nodes of the same level are computed together; levels in ascending order."""
    step = node.round
    return (step.number, not step.full, step.sparsity) if step else (node.rewind_epoch or 0,)
