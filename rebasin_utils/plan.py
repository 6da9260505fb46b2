"""What a study consists of: its artifacts, what each depends on, and their keys.

    dense A, dense B -> matching -> connectivity (the path between A and B)
    dense A -> imp round 1 -> round 2 -> … (branches land on the target sparsities)
    rewind: dense A or B after k epochs
    rewind, imp, matching -> sparse (one run for every method, sparsity, rewind epoch, seed)

Nothing here computes anything: a `Plan` is a function of the `Settings` alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain, groupby, islice

from rebasin_utils import pruning
from rebasin_utils.pruning import Round
from rebasin_utils.settings import Settings, SparseMethod
from rebasin_utils.store import Key
from rebasin_utils.training import TOGETHER

STAGES = ("dense", "rewind", "imp", "matching", "connectivity", "sparse")

#: Raised by one whenever a stage would compute something else from the same settings.
VERSIONS = dict.fromkeys(STAGES, 1)

ROLES = ("A", "B")


@dataclass(frozen=True)
class Node:
    """One artifact of a study. Fields that do not apply to its stage are None.

    epochs: what it costs to make, beyond its parents. made_by: the run that stores this one on its
    way, and after which it costs nothing.
    """

    key: Key
    seed: int
    parents: tuple[Node, ...] = ()
    epochs: int = 0
    role: str | None = None
    round: Round | None = None
    method: SparseMethod | None = None
    sparsity: float | None = None
    rewind_epoch: int | None = None
    made_by: Node | None = None

    @property
    def stage(self) -> str:
        return self.key.stage


def derive_seed(*parts: str | float) -> int:
    """A seed that is a function of its name alone, so that no two uses share one by accident."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


class Plan:
    """The artifacts of `settings`, by name."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self._net = f"{settings.model}-w{settings.width}"
        self._imp_nodes: dict[tuple[str, int, Round], Node] = {}

    def dense(self, role: str, seed: int) -> Node:
        """Net A or B of a pair, trained from its own init."""
        key = self._key("dense", f"{role}-seed{seed}", self._dense_run(role, seed))
        return Node(key, seed, epochs=self.settings.dense.epochs, role=role)

    def rewind(self, role: str, seed: int, epoch: int) -> Node:
        """The state of a dense run after `epoch` epochs; 0 is its init.

        Stored when the run is made. An epoch that is asked for later costs only the epochs up to
        it, and nothing else is computed again.
        """
        depends_on = self._dense_run(role, seed) | {"after": epoch}
        key = self._key("rewind", f"{role}-epoch{epoch}-seed{seed}", depends_on)
        made_by = self.dense(role, seed)
        return Node(key, seed, role=role, rewind_epoch=epoch, made_by=made_by)

    def _dense_run(self, role: str, seed: int) -> dict:
        s = self.settings
        return {
            **{f: getattr(s, f) for f in ("dataset", "pool", "train_limit", "augment")},
            **{"model": s.model, "width": s.width, "recipe": asdict(s.dense)},
            **{"role": role, "seed": seed},
        }

    def imp(self, role: str, seed: int, step: Round) -> Node:
        """One pruning round of a net's trajectory."""
        known = self._imp_nodes.get((role, seed, step))
        return known or self._imp_nodes.setdefault((role, seed, step), self._imp(role, seed, step))

    def _imp(self, role: str, seed: int, step: Round) -> Node:
        s = self.settings
        dense = self.dense(role, seed)
        before = self._full_rounds.get(step.number - 1)
        parents = (dense, self.imp(role, seed, before)) if before else (dense,)
        depends_on = {
            "recipe": asdict(s.imp),
            "number": step.number,
            "sparsity": step.sparsity,
            "prune_shortcuts": s.prune_shortcuts,
        }
        key = self._key("imp", f"{role}-{step.name}-seed{seed}", depends_on, parents)
        epochs = s.imp.epochs if step.number else 0
        return Node(
            key, seed, parents, epochs=epochs, role=role, round=step, sparsity=step.sparsity
        )

    def ticket(self, role: str, seed: int, sparsity: float) -> Node:
        """The pruning round that drew the ticket at `sparsity`."""
        step = next(r for r in self.rounds if sparsity in r.targets)
        return self.imp(role, seed, step)

    def matching(self, seed: int) -> Node:
        """The permutation of A's units that matches them to B's."""
        s = self.settings
        parents = (self.dense("A", seed), self.dense("B", seed))
        depends_on = {
            f: getattr(s, f) for f in ("match_on", "match_samples", "match_std", "stream_tap")
        }
        return Node(self._key("matching", f"seed{seed}", depends_on, parents), seed, parents)

    def connectivity(self, seed: int) -> Node:
        """Loss and accuracy on the path from A, permuted or not, to B."""
        s = self.settings
        parents = (self.dense("A", seed), self.dense("B", seed), self.matching(seed))
        depends_on = {f: getattr(s, f) for f in ("alphas", "path_samples", "statistics_samples")}
        return Node(self._key("connectivity", f"seed{seed}", depends_on, parents), seed, parents)

    def sparse(self, method: SparseMethod, sparsity: float, rewind_epoch: int, seed: int) -> Node:
        """One sparse run: A with its ticket (lth), or B with what `method` makes of it."""
        s = self.settings
        role = "A" if method == "lth" else "B"
        start = self.rewind(role, seed, s.snapshots[rewind_epoch])
        parents = (start, self.ticket("A", seed, sparsity))
        if method == "permuted":
            parents += (self.matching(seed),)
        recipe = s.sparse_recipe(rewind_epoch)
        depends_on = {
            "method": method,
            "sparsity": sparsity,
            "recipe": asdict(recipe),
            "seed": seed,
        }
        label = f"{method}-S{sparsity:.4g}-k{rewind_epoch}-seed{seed}"
        return Node(
            self._key("sparse", label, depends_on, parents),
            seed,
            parents,
            epochs=recipe.epochs,
            method=method,
            sparsity=sparsity,
            rewind_epoch=rewind_epoch,
        )

    @cached_property
    def rounds(self) -> list[Round]:
        """The pruning rounds that the sparsities ask for, in order."""
        return pruning.schedule(self.settings.sparsities, self.settings.imp_tolerance)

    @cached_property
    def _full_rounds(self) -> dict[int, Round]:
        return {r.number: r for r in self.rounds if r.full and r.number}

    @cached_property
    def _stages(self) -> dict[str, list[Node]]:
        s = self.settings
        seeds = range(s.seeds)
        pruned = ROLES if s.tickets_of_b else ("A",)
        return {
            "dense": [self.dense(role, seed) for seed in seeds for role in ROLES],
            "rewind": [
                self.rewind(role, seed, epoch)
                for epoch in s.snapshots.values()
                for seed in seeds
                for role in ROLES
            ],
            "imp": [
                self.imp(r, seed, step) for r in pruned for seed in seeds for step in self.rounds
            ],
            "matching": [self.matching(seed) for seed in seeds],
            "connectivity": [self.connectivity(seed) for seed in seeds],
            "sparse": [
                self.sparse(method, sparsity, rewind_epoch, seed)
                for rewind_epoch in s.rewind_epochs
                for sparsity in s.sparsities
                for method in s.methods
                for seed in seeds
            ],
        }

    def nodes(self, stage: str) -> list[Node]:
        """All artifacts of a stage."""
        return self._stages[stage]

    def tasks(self, stage: str, together: bool) -> list[list[Node]]:
        """The stage's artifacts in lots for one worker each; a lot's nodes are in order.

        together: whether runs of this model are faster stepped together (`training.stackable`).
        The lots do not depend on how many workers there are.
        """
        nodes = self.nodes(stage)
        if stage in ("sparse", "rewind"):
            return [
                lot
                for _, group in groupby(nodes, key=lambda n: n.rewind_epoch)
                for lot in _lots(group, TOGETHER if together else 1)
            ]
        of_one_net = [list(group) for _, group in groupby(nodes, key=lambda n: (n.role, n.seed))]
        size = TOGETHER // 3 if together else 1
        return [list(chain.from_iterable(lot)) for lot in _lots(of_one_net, size)]

    def _key(self, stage: str, label: str, depends_on: dict, parents: Sequence[Node] = ()) -> Key:
        label = f"{self._net}-{label}"
        return Key.of(stage, VERSIONS[stage], label, depends_on, tuple(p.key for p in parents))


def _lots(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items, the last one shorter (`itertools.batched` of Python 3.12)."""
    left = iter(items)
    while lot := list(islice(left, size)):
        yield lot
