"""What a study consists of: its artifacts, what each depends on, and their keys.

    dense A, dense B -> matching -> connectivity (the path between A and B)
    dense A -> imp round 1 -> round 2 -> … (branches land on the target sparsities)
    rewind: dense A or B after k epochs
    rewind, imp, matching -> sparse (one run for every method, sparsity, rewind epoch, seed)
    dense, imp, sparse -> segment (the path between two solutions of one net)
    dense, imp, sparse -> diversity (how differently the members of an ensemble answer)
    dense, imp, matching, sparse -> plane (the map through three nets)

The sparse runs beyond the grid, for ensembles and early matching, start from another net, shuffle
the data otherwise, or take another permutation; each is one of its method's `variant`s.

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

STAGES = (
    "dense", "rewind", "imp", "matching", "connectivity", "sparse", "segment", "diversity", "plane"
)  # fmt: skip

#: The stages that train nothing: they measure stored nets (`analyses`).
ANALYSES = ("connectivity", "segment", "diversity", "plane")

#: Raised by one whenever a stage would compute something else from the same settings.
VERSIONS = dict.fromkeys(STAGES, 1) | {
    "dense": 2,
    "rewind": 2,
    "connectivity": 4,
    "segment": 2,
    "plane": 2,
}

ROLES = ("A", "B")

#: The paths between two solutions that grew from one net.
SEGMENTS = ("dense-imp", "dense-lth")


@dataclass(frozen=True)
class Node:
    """One artifact of a study. Fields that do not apply to its stage are None.

    epochs: what it costs to make, beyond its parents. made_by: the run that stores this one on its
    way, and after which it costs nothing. variant: "" in the grid; else what a sparse run or a
    matching does otherwise. order: which shuffling of the data a sparse run takes.
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
    variant: str = ""
    order: int = 0

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
        of_data = ("dataset", "pool", "train_limit", "test_limit", "augment")
        return {
            **{f: getattr(s, f) for f in of_data},
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

    def matching(
        self, seed: int, net: tuple[str, int] | None = None, epoch: int | None = None
    ) -> Node:
        """The permutation of A's units that matches them to B's, or to another net's.

        Args:
            net: role and seed of the reference, if not the pair's own B.
            epoch: match with the reference as it was after this epoch, not at its end.
        """
        s = self.settings
        role, of = net or ("B", seed)
        reference = self.dense(role, of) if epoch is None else self.rewind(role, of, epoch)
        parents = (self.dense("A", seed), reference)
        depends_on = {
            f: getattr(s, f) for f in ("match_on", "match_samples", "match_std", "stream_tap")
        }
        variant = f"with-{role}{of}" if net else "" if epoch is None else f"at-epoch{epoch}"
        label = _label(f"seed{seed}", variant)
        key = self._key("matching", label, depends_on, parents)
        return Node(key, seed, parents, role=role, variant=variant)

    def connectivity(self, seed: int) -> Node:
        """Loss and accuracy on the path from A, permuted or not, to B."""
        parents = (self.dense("A", seed), self.dense("B", seed), self.matching(seed))
        return Node(
            self._key("connectivity", f"seed{seed}", self._on_paths, parents), seed, parents
        )

    @property
    def _on_paths(self) -> dict:
        s = self.settings
        return {f: getattr(s, f) for f in ("alphas", "path_samples", "statistics_samples")}

    def sparse(
        self,
        method: SparseMethod,
        sparsity: float,
        rewind_epoch: int,
        seed: int,
        *,
        net: tuple[str, int] | None = None,
        order: int = 0,
        match_epoch: int | None = None,
    ) -> Node:
        """One sparse run: A with its ticket (lth), or B with what `method` makes of A's.

        Args:
            net: role and seed of the net to start from, if not the pair's own.
            order: another order of the data than the grid's, which is 0.
            match_epoch: of a permuted run, the epoch of B that π was matched with, if not its last.
        """
        s = self.settings
        role, of = net or ("A" if method == "lth" else "B", seed)
        start = self.rewind(role, of, s.snapshots[rewind_epoch])
        parents = (start, self.ticket("A", seed, sparsity))
        if method == "permuted":
            parents += (self.matching(seed, net, match_epoch),)
        recipe = s.sparse_recipe(rewind_epoch)
        depends_on = {
            "method": method,
            "sparsity": sparsity,
            "recipe": asdict(recipe),
            "seed": seed,
        } | ({"order": order} if order else {})
        variant = "-".join(
            [f"from-{role}{of}"] * bool(net)
            + [f"order{order}"] * bool(order)
            + [f"at-epoch{match_epoch}"] * (match_epoch is not None)
        )
        label = _label(f"{method}-S{sparsity:.4g}-k{rewind_epoch}-seed{seed}", variant)
        return Node(
            self._key("sparse", label, depends_on, parents),
            seed,
            parents,
            epochs=recipe.epochs,
            method=method,
            sparsity=sparsity,
            rewind_epoch=rewind_epoch,
            variant=variant,
            order=order,
        )

    def members(self, method: str, seed: int) -> list[Node]:
        """The nets of an ensemble at the settings' cell (the paper's Section 4.2).

        dense, imp: as many nets, each with its own init and ticket. lth: one net and one ticket
        under several orders of the data. permuted, naive: one ticket on several other nets.
        """
        s = self.settings
        rest = [(role, i) for i in range(s.seeds) if i != seed for role in ROLES]
        others = [("B", seed), *rest][: s.ensemble_size]
        alike = [("A", seed), *others][: len(others)]
        if method == "dense":
            return [self.dense(*net) for net in alike]
        if method == "imp":
            return [self.ticket(*net, s.cell[0]) for net in alike]
        cell = (method, *s.cell, seed)
        if method == "lth":
            return [self.sparse(*cell, order=i) for i in range(len(others))]
        return [self.sparse(*cell), *(self.sparse(*cell, net=net) for net in others[1:])]

    def segment(
        self, kind: str, seed: int, sparsity: float, rewind_epoch: int | None = None
    ) -> Node:
        """The path between two solutions of net A; `kind` is one of `SEGMENTS`.

        Args:
            sparsity: of the pruned ends: that of any pruning round for "dense-imp".
            rewind_epoch: of the LTH end.
        """
        step = next(r for r in self.rounds if sparsity in (r.sparsity, *r.targets))
        ends = {"dense": self.dense("A", seed), "imp": self.imp("A", seed, step)}
        if rewind_epoch is not None:
            ends["lth"] = self.sparse("lth", sparsity, rewind_epoch, seed)
        parents = tuple(ends[end] for end in kind.split("-"))
        k = "" if rewind_epoch is None else f"k{rewind_epoch}"
        label = _label(f"{kind}-S{sparsity:.4g}-seed{seed}", k)
        s = self.settings
        depends_on = {f: getattr(s, f) for f in ("path_samples", "statistics_samples")}
        key = self._key("segment", label, depends_on, parents)
        fields = dict(sparsity=sparsity, rewind_epoch=rewind_epoch, variant=kind)
        return Node(key, seed, parents, round=step, **fields)

    def diversity(self, method: str, seed: int) -> Node:
        """How differently the members of a method's ensemble answer."""
        parents = tuple(self.members(method, seed))
        key = self._key("diversity", f"{method}-seed{seed}", {"method": method}, parents)
        return Node(key, seed, parents, variant=method)

    def plane(self, seed: int) -> Node:
        """The map through sparse π(A), the permuted run's end and dense π(A)."""
        s = self.settings
        run = self.sparse("permuted", *s.cell, seed)
        parents = (self.dense("A", seed), self.dense("B", seed), run, *run.parents)
        depends_on = {f: getattr(s, f) for f in ("plane_points", "path_samples")}
        depends_on["statistics_samples"] = s.statistics_samples
        return Node(self._key("plane", f"seed{seed}", depends_on, parents), seed, parents)

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
        grid = [
            self.sparse(method, sparsity, rewind_epoch, seed)
            for rewind_epoch in s.rewind_epochs
            for sparsity in s.sparsities
            for method in s.methods
            for seed in seeds
        ]
        sparse = _distinct([*grid, *self._early_runs, *self._member_runs], "sparse")
        matched = [self.matching(seed) for seed in seeds]
        matched += [self.matching(seed, epoch=t) for seed in seeds for t in s.match_epochs]
        of_runs = [parent for node in sparse for parent in node.parents]
        return {
            "dense": [self.dense(role, seed) for seed in seeds for role in ROLES],
            "rewind": [
                self.rewind(role, seed, epoch)
                for epoch in s.saved_epochs
                for seed in seeds
                for role in ROLES
            ],
            "imp": [
                self.imp(r, seed, step) for r in pruned for seed in seeds for step in self.rounds
            ],
            "matching": sorted(
                _distinct([*matched, *of_runs], "matching"), key=lambda node: node.seed
            ),
            "connectivity": [self.connectivity(seed) for seed in seeds],
            "sparse": sorted(sparse, key=lambda node: s.rewind_epochs.index(node.rewind_epoch)),
            "segment": [node for seed in seeds for node in self._segments(seed)],
            "diversity": [
                self.diversity(method, seed) for seed in seeds for method in self.compared
            ],
            "plane": [self.plane(0)] if self._has_plane else [],
        }

    @property
    def compared(self) -> list[str]:
        """The methods whose ensembles are compared."""
        s = self.settings
        if not (s.looks_closer and s.tickets_of_b and s.seeds > 1 and s.ensemble_size > 1):
            return []
        return ["dense", "imp", *(m for m in ("lth", "permuted", "naive") if m in s.methods)]

    @property
    def _has_plane(self) -> bool:
        s = self.settings
        return s.looks_closer and "permuted" in s.methods and s.plane_points > 1

    @property
    def _member_runs(self) -> list[Node]:
        seeds = range(self.settings.seeds)
        return [node for m in self.compared for seed in seeds for node in self.members(m, seed)]

    @property
    def _early_runs(self) -> list[Node]:
        s = self.settings
        if not (s.looks_closer and "permuted" in s.methods):
            return []
        return [
            self.sparse("permuted", *s.cell, seed, match_epoch=epoch)
            for epoch in s.match_epochs
            for seed in range(s.seeds)
        ]

    def _segments(self, seed: int) -> list[Node]:
        s = self.settings
        found = [
            self.segment("dense-imp", seed, step.sparsity)
            for step in self.rounds
            if step.number and (step.targets or s.paths_to_every_round)
        ]
        if "lth" in s.methods:
            found += [
                self.segment("dense-lth", seed, sparsity, rewind_epoch)
                for sparsity in s.sparsities
                for rewind_epoch in s.rewind_epochs
            ]
        return found

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
        if stage in (*ANALYSES, "matching"):
            return [list(group) for _, group in groupby(nodes, key=lambda n: n.seed)]
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


def _label(name: str, variant: str) -> str:
    return f"{name}-{variant}" if variant else name


def _distinct(nodes: Iterable[Node], stage: str) -> list[Node]:
    """Those of one stage, each once, in order."""
    return list({node.key: node for node in nodes if node.stage == stage}.values())
