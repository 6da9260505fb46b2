"""The paper's claims, held against a study's results: claim, paper, ours, n, verdict.

Every claim is about differences, paired over the pairs A–B, with a 95 % t-interval in each cell it
speaks of. It *holds* when the intervals are where it says, is *contradicted* when one lies wholly
on the other side, and is *open* otherwise, or when there is one pair only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from typing import Literal

import pandas as pd

from rebasin_utils.errors import InputError
from rebasin_utils.study import Study
from rebasin_utils.tables import (
    early_matching,
    ensembles,
    gaps,
    interval,
    overlaps,
    paired_difference,
    paths,
    segments,
    variances,
)

COLUMNS = ["claim", "paper", "ours", "n", "verdict"]

#: "more": every interval lies above 0. "no_less": none lies below 0. "same": every one holds 0.
Expects = Literal["more", "no_less", "same"]

#: The published table that the verdicts quote: ResNet20×1 on CIFAR-10.
QUOTED = "ws_table3_resnet20_w1_cifar10"


def published(name: str) -> pd.DataFrame:
    """One of the published tables, as shipped in `rebasin_utils/published/<name>.csv`.

    Raises:
        InputError: when there is none of that name.
    """
    folder = files("rebasin_utils") / "published"
    file = folder / f"{name}.csv"
    if not file.is_file():
        known = sorted(f.name.removesuffix(".csv") for f in folder.iterdir())
        raise InputError(f"published table = {name!r}: choose one of {', '.join(known)}")
    with file.open() as text:
        return pd.read_csv(text)


def judge(cells: pd.DataFrame, expects: Expects) -> str:
    """holds, contradicted or open, from the columns low, high and n of the cells' intervals."""
    if cells["n"].min() < 2:
        return "open"
    any_below, any_above = (cells["high"] < 0).any(), (cells["low"] > 0).any()
    if any_below or (expects == "same" and any_above):
        return "contradicted"
    if expects == "more":
        return "holds" if (cells["low"] > 0).all() else "open"
    return "holds"


@dataclass(frozen=True)
class Claim:
    """`first` against `second`, by test accuracy, in the cells whose rewind epoch `applies`."""

    text: str
    first: str
    second: str
    expects: Expects
    applies: Callable[[int], bool]
    paper: Callable[[float], str] = lambda sparsity: "not in the paper"


def _published_difference(
    first: str, second: str, applies: Callable[[int], bool]
) -> Callable[[float], str]:
    def quote(sparsity: float) -> str:
        rows = published(QUOTED)
        rows = rows[(rows["sparsity"] == sparsity) & rows["rewind_epoch"].map(applies)]
        if rows.empty:
            return f"nothing at {sparsity:.0%}"
        means = rows.pivot_table("mean", "rewind_epoch", "method")
        each = means[first] - means[second]
        if len(each) == 1:
            return f"{each.iloc[0]:+.2f} pp"
        return f"{each.min():+.2f} … {each.max():+.2f} pp"

    return quote


CLAIMS = (
    Claim(
        "with the permuted mask B trains to a higher accuracy than with the mask as it is (k ≥ 1)",
        "permuted", "naive", "more", lambda k: k >= 1,
        _published_difference("permuted", "naive", lambda k: k >= 5),
    ),
    Claim(
        "LTH, A with its own mask, is at least as good as permuted (all k)",
        "lth", "permuted", "no_less", lambda k: True,
        _published_difference("LTH", "permuted", lambda k: k >= 5),
    ),
    Claim(
        "from the true init (k = 0) permuting the mask makes no difference",
        "permuted", "naive", "same", lambda k: k == 0,
        _published_difference("permuted", "naive", lambda k: k == 0),
    ),
    Claim(
        "a random permutation of the mask is no better than the mask as it is (k ≥ 1)",
        "naive", "random_permutation", "no_less", lambda k: k >= 1,
    ),
    Claim(
        "a random mask with the same layer densities is no better than the mask as it is (k ≥ 1)",
        "naive", "random_mask", "no_less", lambda k: k >= 1,
    ),
)  # fmt: skip


def of_sparse_runs(results: pd.DataFrame, sparsity: float = 0.90) -> pd.DataFrame:
    """The claims about sparse training at one sparsity; those without runs are left out.

    The paper's column is ResNet20×1 on CIFAR-10 (its nominal k = 0 is one trained epoch); ours is
    whatever `results` holds, as mean difference and 95 % interval for every k.
    """
    at = results[results["sparsity"].sub(sparsity).abs() < 1e-9]
    there = set(at["method"])
    rows = []
    for claim in CLAIMS:
        if not {claim.first, claim.second} <= there:
            continue
        cells = paired_difference(at, claim.first, claim.second)
        cells = cells[cells["rewind_epoch"].map(claim.applies)]
        if cells.empty:
            continue
        labels = [f"k={k}" for k in cells["rewind_epoch"]]
        ours = f"{claim.first} − {claim.second}, pp: {_describe(labels, cells)}"
        verdict = judge(cells, claim.expects)
        rows.append((claim.text, claim.paper(sparsity), ours, int(cells["n"].min()), verdict))
    return pd.DataFrame(rows, columns=COLUMNS)


def of_paths(study: Study) -> pd.DataFrame:
    """The claims about the point halfway between A and B.

    The paper's column is ResNet20×1 on CIFAR-10 as in Jordan et al. 2023, whose matching the paper
    uses.
    """
    repair = published("ref_repair_resnet20_bn_midpoint")
    repair = repair[(repair["dataset"] == "CIFAR-10") & (repair["width"] == 1)]
    reported = repair.set_index("variant")["test_acc"]
    plain = reported["permuted_midpoint_no_bn_reset"]
    reset = reported["permuted_midpoint_bn_reset"]
    claims = (
        ("matching raises the accuracy halfway", "unmatched", "matched", f"to {plain:.1f} %"),
        (
            "recomputing batch norm's statistics raises it further",
            "matched", "matched_bn_reset", f"{plain:.1f} → {reset:.1f} %",
        ),
        (
            "batch norm recomputed, matching still raises it",
            "unmatched_bn_reset", "matched_bn_reset", "not reported",
        ),
        ("REPAIR raises it over matching alone", "matched", "matched_repair", "not reported"),
        (
            "REPAIR alone, without matching, does less than both",
            "unmatched_repair", "matched_repair", "not reported",
        ),
    )  # fmt: skip
    table = paths(study)
    middle = 100 * table[table["alpha"] == 0.5].pivot_table("accuracy", "seed", "path")
    rows = []
    for claim, before, after, paper in claims:
        if {before, after} <= set(middle):
            means = f"{middle[before].mean():.1f} → {middle[after].mean():.1f} %"
            difference = {means: middle[after] - middle[before]}
            rows.append(_row(claim, paper, f"{after} − {before}, pp: ", difference))
    return pd.DataFrame(rows, columns=COLUMNS)


def of_overlaps(study: Study) -> pd.DataFrame:
    """The claims about how much of B's own ticket is in A's, over all sparsities."""
    table = overlaps(study)
    shared = 100 * table.pivot_table("overlap", ["sparsity", "seed"], "kind")
    claims: tuple[tuple[str, str, str, Expects], ...] = (
        (
            "π(A's ticket) shares more with B's ticket than A's ticket does",
            "permuted", "mask", "more",
        ),
        (
            "a random permutation of A's ticket shares no more with B's than A's ticket does",
            "mask", "random_permutation", "no_less",
        ),
    )  # fmt: skip
    rows = []
    for claim, first, second, expects in claims:
        each = _by_sparsity(shared[first] - shared[second])
        what = f"{first} − {second}, pp: "
        rows.append(_row(claim, "not in the paper", what, each, expects))
    return pd.DataFrame(rows, columns=COLUMNS)


def of_variances(study: Study) -> pd.DataFrame:
    """The claims about the variance halfway between A and B (Jordan et al. 2023, Section 3)."""
    each = variances(study).pivot_table("ratio", "seed", "path")  # mean over the layers
    missing = {path: 100 * (1 - each[path]) for path in each}
    claims = (
        ("averaging two nets collapses the variance", missing["unmatched"], "% missing"),
        ("matching restores a part of it", missing["unmatched"] - missing["matched"], "% restored"),
        ("a part stays missing", missing["matched"], "% missing"),
        (
            "REPAIR restores that too", missing["matched"] - missing["matched_repair"].abs(),
            "% restored",
        ),
    )  # fmt: skip
    rows = [_row(claim, "so in ResNets and VGGs", "", {unit: v}) for claim, v, unit in claims]
    return pd.DataFrame(rows, columns=COLUMNS)


def of_segments(study: Study) -> pd.DataFrame:
    """The claims about the barriers between solutions of one net (the paper's Figure 4a).

    The paper's column is ResNet20×4 on CIFAR-10, ten IMP iterations towards 90 %.
    """
    table = segments(study)
    targets = table["sparsity"].isin(study.settings.sparsities)
    quoted = published("fig4a_imp_error_barrier_digitised")
    last = quoted[quoted["imp_iteration"] == quoted["imp_iteration"].max()]
    last = last.set_index("variant")["mean_error_barrier_pct"]
    barrier = table[targets].set_index(["sparsity", "seed"])
    of_imp = barrier[barrier["kind"] == "dense-imp"].groupby("correction")["error"]
    lowered = of_imp.get_group("none") - of_imp.get_group("repair")
    rows = [
        _row(
            "REPAIR lowers the barrier between dense A and its IMP iterates",
            f"{last['without_REPAIR']:.1f} → {last['with_REPAIR']:.1f} pp",
            "lowered by, pp: ",
            _by_sparsity(lowered),
        )
    ]
    of_lth = barrier[(barrier["kind"] == "dense-lth") & (barrier["correction"] == "repair")]
    by_start = of_lth.groupby("rewind_epoch")["error"]
    if len(by_start) > 1:
        first, latest = of_lth["rewind_epoch"].min(), of_lth["rewind_epoch"].max()
        claim = f"repaired, LTH from k = {latest} is nearer to dense A than LTH from k = {first}"
        nearer = by_start.get_group(first) - by_start.get_group(latest)
        each = _by_sparsity(nearer)
        rows.append(_row(claim, "not in the paper", "barrier lower by, pp: ", each))
    return pd.DataFrame(rows, columns=COLUMNS)


def of_widths(studies: Sequence[Study], sparsity: float, rewind_epoch: int) -> pd.DataFrame:
    """The claims about the width, between the narrowest and the widest of the studies.

    The gap to LTH is that of one cell of the grid, and left out where a study lacks it.

    Pairs at two widths have nothing in common but their number, so that these intervals are wider
    than paired ones. The paper's column is ResNet20 on CIFAR-10, ×1 and ×4, at 90 % and k ≥ 10.
    """
    narrow, wide = (f(studies, key=lambda s: s.settings.width) for f in (min, max))
    rows = []

    def add(claim: str, paper: str, low: pd.Series, high: pd.Series, sign: int) -> None:
        means = f"{low.mean():.1f} → {high.mean():.1f}"
        rows.append(_row(claim, paper, "", {means: (sign * (high - low)).dropna()}))

    middle = [
        100 * at[at["alpha"] == 0.5].pivot_table("accuracy", "seed", "path")
        for at in (paths(narrow), paths(wide))
    ]
    repair = published("ref_repair_resnet20_bn_midpoint").query("dataset == 'CIFAR-10'")
    reset = repair[repair["variant"] == "permuted_midpoint_bn_reset"].set_index("width")["test_acc"]
    for path in ("matched", "matched_bn_reset", "matched_repair"):
        if path in middle[0]:
            paper = (
                f"{reset[1]:.1f} → {reset[4]:.1f} %" if path == "matched_bn_reset" else "the same"
            )
            add(
                f"{path}: halfway, the wider net is more accurate",
                paper,
                *(m[path] for m in middle),
                1,
            )
    lacks = [gaps(study, sparsity, rewind_epoch).get("LTH − permuted") for study in (narrow, wide)]
    if all(gap is not None for gap in lacks):
        add("the wider net lacks less to LTH", "1.3–1.9 → 0.5–0.9 pp", *lacks, -1)
    return pd.DataFrame(rows, columns=COLUMNS)


def of_ensembles(study: Study) -> pd.DataFrame:
    """The claims about ensembles at the settings' cell (the paper's Table 1, ResNet20×1, CIFAR-10).

    Different tickets share some of their members' nets, so the intervals are a little too narrow.
    """
    ours = ensembles(study).pivot(index="seed", columns="method")
    table = published("icml_table1_diversity").query("dataset == 'CIFAR-10'").set_index("method")
    name = {"lth": "LTH", "imp": "IMP"}
    claims = (
        ("permuted runs disagree more often than LTH runs", "disagreement", "permuted", "lth", 100),
        ("an ensemble gains more over its members with permuted than with LTH runs", "gain",
         "permuted", "lth", 1),
        ("the ensemble of permuted runs beats that of LTH runs", "ensemble", "permuted", "lth", 1),
        ("the ensemble of permuted runs beats that of naive runs", "ensemble", "permuted", "naive",
         1),
        ("the ensemble of IMP nets is the best", "ensemble", "imp", "permuted", 1),
    )  # fmt: skip
    columns = {"ensemble": "ensemble_acc", "disagreement": "disagreement"}
    rows = []
    for claim, metric, first, second, percent in claims:
        values, quoted = [], []
        for method in (first, second):
            at, row = ours.xs(method, axis=1, level="method"), table.loc[name.get(method, method)]
            gain = metric == "gain"
            values.append(at["ensemble"] - at["accuracy"] if gain else percent * at[metric])
            quoted.append(
                row["ensemble_acc"] - row["test_acc_mean"]
                if gain
                else percent * row[columns[metric]]
            )
        means = f"{values[0].mean():.1f} against {values[1].mean():.1f}"
        paper = f"{quoted[0]:.1f} against {quoted[1]:.1f}"
        rows.append(_row(claim, paper, "", {means: values[0] - values[1]}))
    return pd.DataFrame(rows, columns=COLUMNS)


def of_early_matching(study: Study) -> pd.DataFrame:
    """The claims about matching with an early B (the paper's Table 15: ResNet20×1, CIFAR-10)."""
    at, sparsity = early_matching(study), study.settings.cell[0]
    runs = 100 * at.pivot_table("test_accuracy", "seed", ["method", "match_epoch"], dropna=False)
    naive = 100 * at[at["method"] == "naive"].set_index("seed")["test_accuracy"]
    permuted = runs["permuted"].dropna(axis=1, how="all")
    quoted = published("icml_table15_early_matching")
    quoted = quoted[quoted["sparsity"].sub(sparsity).abs() < 1e-9]
    base = quoted[quoted["method"] == "naive"]["mean"]
    means = quoted[quoted["method"] == "permuted"].set_index("matching_epoch_of_B")["mean"]
    paper = "nothing at this sparsity"
    if len(base):
        gains = (means - base.iloc[0]).items()
        paper = "; ".join(f"t={t:.0f}: {gain:+.2f} pp" for t, gain in gains)
    rows = []
    claims = (
        ("π matched with B after few epochs (t ≥ 1) already beats naive", lambda t: t >= 1, "more"),
        ("π matched with B's init (t = 0) is no better than naive", lambda t: t == 0, "same"),
    )
    for claim, applies, expects in claims:
        epochs = [t for t in permuted.columns if applies(t)]
        if epochs:
            each = {f"t={t}": permuted[t] - naive for t in epochs}
            said = paper if expects == "more" else "not in the paper"
            rows.append(_row(claim, said, "permuted − naive, pp: ", each, expects))
    return pd.DataFrame(rows, columns=COLUMNS)


def of_all(studies: Sequence[Study]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Every claim that these studies can be held to, a table at a time, with its heading."""
    for study in studies:
        s = study.settings
        yield f"{s.name}, halfway", pd.concat([of_paths(study), of_variances(study)])
        if not s.methods or not s.sparsities:
            continue
        sparsity = s.cell[0] if s.looks_closer else s.sparsities[0]
        yield f"{s.name}, {sparsity:.0%} sparsity", of_sparse_runs(study.results(), sparsity)
        yield f"{s.name}, segments", of_segments(study)
        if s.tickets_of_b:
            yield f"{s.name}, overlaps", of_overlaps(study)
        if study.plan.nodes("diversity"):
            yield f"{s.name}, ensembles", of_ensembles(study)
        if s.looks_closer and s.match_epochs:
            yield f"{s.name}, early matching", of_early_matching(study)
    for model, several in groupby(sorted(studies, key=_by_model), key=lambda s: s.settings.model):
        several = list(several)
        if len(several) > 1:
            cell = next((s.settings.cell for s in several if s.settings.looks_closer), (0.9, 0))
            yield f"{model}, width", of_widths(several, *cell)


def _by_model(study: Study) -> tuple[str, int]:
    return study.settings.model, study.settings.width


def _row(
    claim: str,
    paper: str,
    what: str,
    differences: Mapping[str, pd.Series],
    expects: Expects = "more",
) -> tuple:
    """A row of the verdicts from the differences in each cell, by the cell's label."""
    intervals = [(*interval(each), len(each)) for each in differences.values()]
    cells = pd.DataFrame(intervals, columns=["difference", "low", "high", "n"])
    ours = what + _describe(list(differences), cells)
    return claim, paper, ours, int(cells["n"].min()), judge(cells, expects)


def _by_sparsity(differences: pd.Series) -> dict[str, pd.Series]:
    return {f"S={sparsity:.0%}": each for sparsity, each in differences.groupby("sparsity")}


def _describe(labels: Sequence[str], cells: pd.DataFrame) -> str:
    return "; ".join(
        f"{label}: {c.difference:+.2f} [{c.low:+.2f}, {c.high:+.2f}]"
        for label, c in zip(labels, cells.itertuples(), strict=True)
    )
