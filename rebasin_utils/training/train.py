"""Dense and masked training of many small runs of one architecture.

`train_many` trains a list of `Job`s and returns what training them one by one would: a run's
randomness comes from its own seed alone, what a network itself draws (`draws`) included, so what is
trained beside it changes nothing. Networks of linear layers are stacked and stepped together
(batched matrix products); the others run one after another in channels-last memory
(`benchmarks/training_candidates.md` decided), or on a GPU side by side as graphs, where a trial
finds that faster.

Masked weights are held at zero by multiplying with the mask after every step. This equals
`torch.nn.utils.prune`, where a masked weight gets no gradient and is never seen by the forward
pass, because SGD treats every weight on its own. Where it shall be AWS (`norms`), norm layers are
interpolated for each step's forward and backward pass, and are themselves again when it is over.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from rebasin_utils.errors import InputError, require_state
from rebasin_utils.files import replace_synced
from rebasin_utils.nets.data import Batches, Split, training_batches
from rebasin_utils.nets.masks import Mask, State
from rebasin_utils.training.chains import chain
from rebasin_utils.training.draws import drawing, draws
from rebasin_utils.training.graphs import Graphed, choose
from rebasin_utils.training.norms import Interpolated, inits
from rebasin_utils.training.optimizers import Optimizer
from rebasin_utils.training.parallel import Parallel
from rebasin_utils.training.ranks import Ranks
from rebasin_utils.training.recipes import Recipe
from rebasin_utils.training.stacking import (
    Single,
    Stacked,
    of_each_run,
    single_for,
    stack_for,
    stackable,
)

#: Runs that one worker is dealt at a time.
TOGETHER = 12


@dataclass(frozen=True)
class Job:
    """One run: where it starts, its mask if any, the seed of its data order and augmentation.

    snapshots: epochs after which the state is kept; 0 is the start itself.
    checkpoint: a file in which the run keeps its progress, and from which it resumes.
    aws_seed: of the draws by which AWS interpolates norm layers; None trains plainly.
    """

    state: State
    seed: int
    mask: Mask | None = None
    snapshots: tuple[int, ...] = ()
    checkpoint: Path | None = None
    aws_seed: int | None = None


@dataclass(frozen=True)
class Trained:
    """What a run gives back.

    losses: mean training loss of every epoch. seconds: its share of the time of all that was
    trained together. diverged: a loss or a weight was not finite.
    """

    state: State
    snapshots: dict[int, State]
    losses: list[float]
    diverged: bool
    seconds: float


def train_many(
    model: nn.Module,
    jobs: Sequence[Job],
    recipe: Recipe,
    images: Split,
    *,
    augment: bool = False,
    until: int | None = None,
    progress: Callable[[int], None] = lambda epochs: None,
    checkpoint_seconds: float = 60.0,
    ranks: Ranks | None = None,
) -> list[Trained]:
    """Train every job; equal, to rounding, to training each alone.

    Args:
        model: gives the architecture only; it is not changed.
        images: the training split, on the device to train on.
        augment: crop and flip as `images.source` says.
        until: stop after this epoch of the recipe; None trains to its end.
        progress: called with the number of run-epochs finished since the last call.
        checkpoint_seconds: least time between two checkpoints of a run that has a file for them.
        ranks: that train together; each calls this, and has a part of every batch. Files are the
            first one's matter, and so is the progress; what it has at the end, all return.

    Returns:
        One `Trained` per job, in order.

    Raises:
        InputError: when a job's state is none, when norm layers shall be interpolated and there
            are none, when batches of one sample come to a batch norm of single units, when the
            split has less than one batch, or when the ranks cannot divide a batch.
    """
    _check(model, jobs, recipe)
    alone = ranks is None or ranks.leads
    begun = [_Progress.of(job) for job in jobs] if alone else []
    if ranks is not None:
        begun = ranks.told(begun)
        jobs = [job if ranks.leads else replace(job, checkpoint=None) for job in jobs]
    part = (0, 1) if ranks is None else ranks.part
    batches = training_batches(images, recipe.batch_size, augment, part)
    drawn = not stackable(model) and draws(model, images)
    kind, together = _way(model, jobs, batches, recipe, ranks, drawn)
    results: list[Trained | None] = [None] * len(jobs)
    for chosen, theirs in _groups(begun, together):
        net = kind(model, [b.state for b in theirs], images.device)
        group = _Group(model, net, [jobs[i] for i in chosen], theirs, recipe, batches, drawn)
        for i, trained in zip(chosen, group.run(until, progress, checkpoint_seconds), strict=True):
            results[i] = trained
    return results if ranks is None else ranks.told(results)


def train(model: nn.Module, job: Job, recipe: Recipe, images: Split, **options) -> Trained:
    """Train one job: `train_many` of a list of one."""
    return train_many(model, [job], recipe, images, **options)[0]


def _check(model: nn.Module, jobs: Sequence[Job], recipe: Recipe) -> None:
    for job in jobs:
        require_state(job.state, "a job's state")
    seed = next((job.aws_seed for job in jobs if job.aws_seed is not None), None)
    if seed is not None and not inits(model):
        raise InputError(
            f"aws_seed = {seed}: {type(model).__name__} has no batch or layer norm with γ or β to "
            "interpolate; without a seed it is trained plainly"
        )
    norms = [layer.norm for layer in chain(model) if layer.norm]
    if recipe.batch_size == 1 and any(norm.momentum is not None for norm in norms):
        raise InputError("batch_size = 1: batch norm has no variance in one sample; at least 2")


def _way(
    model: nn.Module,
    jobs: Sequence[Job],
    batches: Batches,
    recipe: Recipe,
    ranks: Ranks | None,
    drawn: bool,
) -> tuple[Callable[..., Stacked | Single | Graphed], int]:
    """What trains these runs, and how many of them as one."""
    if ranks is not None:
        return partial(Parallel, recipe=recipe, ranks=ranks), 1
    if recipe.batch_norm_groups > 1 or recipe.precision != "float32":
        how = {"groups": recipe.batch_norm_groups, "precision": recipe.precision}
        return partial(single_for(model, batches.images), **how), 1
    kind, together = stack_for(model, batches.images, batches.batch_size)
    if kind is not Single or drawn or not jobs or batches.images.device.type != "cuda":
        return kind, together
    some = jobs[:TOGETHER]
    return choose(model, some[0].state, *next(batches.epoch([job.seed for job in some], 0)))


@dataclass(frozen=True)
class _Progress:
    """Where a run stands: what its checkpoint file holds.

    memory: the optimiser's, by its names. step: of the epoch, so many of its batches are behind it;
    total: the sum of their losses.
    """

    epoch: int
    state: State
    memory: dict[str, State] = field(default_factory=dict)
    snapshots: dict[int, State] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    step: int = 0
    total: float = 0.0

    @classmethod
    def of(cls, job: Job) -> _Progress:
        """The job's beginning, or where its checkpoint left it."""
        if job.checkpoint is not None and job.checkpoint.is_file():
            try:
                return cls.read(job.checkpoint)
            except (SafetensorError, ValueError, LookupError) as error:
                warnings.warn(
                    f"{job.checkpoint} is damaged ({error}): the run starts again", stacklevel=2
                )
        return cls(0, job.state)

    @classmethod
    def read(cls, path: Path) -> _Progress:
        with safe_open(path, framework="pt") as file:
            meta = json.loads(file.metadata()["progress"])
            parts: dict[str, State] = {}
            for key in file.keys():  # noqa: SIM118 (not a dict)
                part, name = key.split("/", 1)
                parts.setdefault(part, {})[name] = file.get_tensor(key)
        state = parts.pop("state")
        snapshots = {int(p): parts.pop(p) for p in list(parts) if p.isdigit()}
        return cls(
            meta["epoch"],
            state,
            parts,
            snapshots,
            meta["losses"],
            meta["seconds"],
            meta.get("step", 0),
            meta.get("total", 0.0),
        )

    def write(self, path: Path) -> None:
        parts = {"state": self.state} | self.memory
        parts |= {str(epoch): state for epoch, state in self.snapshots.items()}
        tensors = {f"{part}/{n}": t for part, s in parts.items() for n, t in s.items()}
        meta = {"epoch": self.epoch, "losses": self.losses, "seconds": self.seconds}
        meta |= {"step": self.step, "total": self.total}
        replace_synced(path, save_tensors(tensors, metadata={"progress": json.dumps(meta)}))


def _groups(
    begun: Sequence[_Progress], together: int
) -> Iterator[tuple[list[int], list[_Progress]]]:
    """Split the jobs into groups that stand at the same step, at most `together` each."""
    for place in sorted({(b.epoch, b.step) for b in begun}):
        members = [i for i, b in enumerate(begun) if (b.epoch, b.step) == place]
        for start in range(0, len(members), together):
            chosen = members[start : start + together]
            yield chosen, [begun[i] for i in chosen]


class _Group:
    """Jobs that are stepped together; where nets draw numbers (`drawn`), one."""

    def __init__(
        self,
        model: nn.Module,
        net: Stacked | Single | Graphed,
        jobs: Sequence[Job],
        begun: Sequence[_Progress],
        recipe: Recipe,
        batches: Batches,
        drawn: bool,
    ):
        self.drawn = drawn
        self.net, self.jobs, self.recipe, self.batches = net, jobs, recipe, batches
        self.masks = _stacked_masks(jobs, self.net)
        self._apply_masks()
        self.aws_seeds = [job.aws_seed for job in jobs]
        some = any(seed is not None for seed in self.aws_seeds)
        self.interpolated = Interpolated(model, net) if some else None
        self.epoch, self.step = begun[0].epoch, begun[0].step
        self.total = torch.tensor([b.total for b in begun], device=batches.images.device)
        self.losses = [list(b.losses) for b in begun]
        self.seconds = [b.seconds for b in begun]
        self.snapshots = [dict(b.snapshots) for b in begun]
        self.optimizer = Optimizer(recipe, self.net.trained)
        if begun[0].memory:
            steps = self.epoch * batches.steps + self.step
            self.optimizer.remember(
                {part: self._stacked(begun, part) for part in begun[0].memory}, steps
            )

    def _stacked(self, begun: Sequence[_Progress], part: str) -> list[Tensor]:
        """What the optimisers of all runs remembered, as tensors like the trained ones."""
        buffers = [torch.zeros_like(tensor) for tensor in self.net.trained]
        for name, buffer in self.net.named(buffers).items():
            buffer.copy_(torch.stack([b.memory[part][name] for b in begun]))
        return buffers

    def run(
        self, until: int | None, progress: Callable[[int], None], checkpoint_seconds: float
    ) -> list[Trained]:
        saved = time.monotonic()
        last = self.recipe.epochs if until is None else until
        if not self.step:
            self._keep_snapshots()
        while self.epoch < last:
            for _ in self._steps():
                saved = self._save_if_due(saved, checkpoint_seconds)
            self._keep_snapshots()
            progress(self.net.runs)
            if self.epoch < last:
                saved = self._save_if_due(saved, checkpoint_seconds)
        return [
            Trained(state, snapshots, losses, not _finite(state, losses), seconds)
            for state, snapshots, losses, seconds in zip(
                self.net.states(), self.snapshots, self.losses, self.seconds, strict=True
            )
        ]

    def _steps(self) -> Iterator[None]:
        """The steps that are left of an epoch; stops between two, to let a checkpoint be made."""
        begin = time.monotonic()
        seeds = [job.seed for job in self.jobs]
        if self.interpolated:
            a = self.interpolated.plan(self.aws_seeds, self.epoch, self.batches.steps)
        for x, y in self.batches.epoch(seeds, self.epoch, self.step):
            with self._drawing(x.device):
                if self.interpolated:
                    self.total += self.interpolated.losses(x, y, a[self.step])
                else:
                    self.total += self.net.losses(x, y)
            self.optimizer.step(self.epoch)
            self._apply_masks()
            self.step += 1
            if self.step < self.batches.steps:
                begin = self._add_seconds(begin)
                yield
        for losses, loss in zip(
            self.losses, (self.total / self.batches.steps).tolist(), strict=True
        ):
            losses.append(loss)
        self.epoch, self.step = self.epoch + 1, 0
        self.total.zero_()
        self._add_seconds(begin)

    def _drawing(self, device: torch.device) -> AbstractContextManager[None]:
        if not self.drawn:
            return nullcontext()
        return drawing(device, self.jobs[0].seed, self.epoch, self.step, self.batches.part[0])

    def _add_seconds(self, begin: float) -> float:
        now = time.monotonic()
        self.seconds = [seconds + (now - begin) / self.net.runs for seconds in self.seconds]
        return now

    @torch.no_grad()
    def _apply_masks(self) -> None:
        for tensor, mask in self.masks:
            tensor.mul_(mask)

    def _keep_snapshots(self) -> None:
        wanted = [self.epoch in job.snapshots for job in self.jobs]
        if any(wanted):
            for kept, state, wants in zip(self.snapshots, self.net.states(), wanted, strict=True):
                if wants:
                    kept[self.epoch] = state

    def _save_if_due(self, saved: float, checkpoint_seconds: float) -> float:
        """When the last checkpoint was written."""
        if time.monotonic() - saved < checkpoint_seconds:
            return saved
        self._write_checkpoints()
        return time.monotonic()

    def _write_checkpoints(self) -> None:
        memories: list[dict[str, State]] = [{} for _ in range(self.net.runs)]
        for part, buffers in self.optimizer.memory().items():
            for memory, own in zip(memories, of_each_run(self.net.named(buffers)), strict=True):
                memory[part] = own
        totals = self.total.tolist()
        for i, (job, state) in enumerate(zip(self.jobs, self.net.states(), strict=True)):
            if job.checkpoint is not None:
                snapshots, losses, seconds = self.snapshots[i], self.losses[i], self.seconds[i]
                place = self.step, totals[i]
                _Progress(self.epoch, state, memories[i], snapshots, losses, seconds, *place).write(
                    job.checkpoint
                )


@torch.no_grad()
def _stacked_masks(
    jobs: Sequence[Job], net: Stacked | Single | Graphed
) -> list[tuple[Tensor, Tensor]]:
    """What is trained and masked, with masks of its shape; what has no mask is kept whole."""
    if not any(job.mask for job in jobs):
        return []
    masks = [torch.ones_like(tensor) for tensor in net.trained]
    for name, stacked in net.named(masks).items():
        for mask, job in zip(stacked, jobs, strict=True):
            if job.mask and name in job.mask:
                mask.copy_(job.mask[name])
    pairs = zip(net.trained, masks, strict=True)
    return [(tensor, mask) for tensor, mask in pairs if not mask.all()]


def _finite(state: State, losses: Sequence[float]) -> bool:
    return all(map(math.isfinite, losses)) and all(t.isfinite().all() for t in state.values())
