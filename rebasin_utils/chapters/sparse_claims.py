"""The claims about sparse training: naive, permuted, LTH and the controls, cell by cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from rebasin_utils.chapters import published
from rebasin_utils.chapters.evidence import COLUMNS, paired, row
from rebasin_utils.chapters.judgement import MARGIN, Kind
from rebasin_utils.chapters.published import Grid
from rebasin_utils.study.stages import budgets, rescaling
from rebasin_utils.study.study import Study

#: From this sparsity on runs may fall to chance, and differences are anything but normal.
COLLAPSING = 0.97

#: The published rewind epochs k name states after k + 1 epochs, so that "0" is no init.
_IN_THE_PAPER = 5


@dataclass(frozen=True)
class Claim:
    """`first` against `second`, by test accuracy, in the cells whose rewind epoch `applies`.

    quoted: which of the published rewind epochs speak of it; none, where nothing is published.
    """

    text: str
    first: str
    second: str
    kind: Kind
    applies: Callable[[int], bool]
    quoted: Callable[[int], bool] | None = None


CLAIMS = (
    Claim(
        "with the permuted mask B trains to a higher accuracy than with the mask as it is (k ≥ 1)",
        "permuted", "naive", "more", lambda k: k >= 1, lambda k: k >= _IN_THE_PAPER,
    ),
    Claim(
        f"LTH, A with its own mask, is no worse than permuted, by {MARGIN:g} pp (all k)",
        "lth", "permuted", "no worse", lambda k: True, lambda k: k >= _IN_THE_PAPER,
    ),
    Claim(
        "LTH is better than permuted (k ≥ 1)",
        "lth", "permuted", "more", lambda k: k >= 1, lambda k: k >= _IN_THE_PAPER,
    ),
    Claim(
        f"from the true init (k = 0) permuting the mask makes no difference of {MARGIN:g} pp",
        "permuted", "naive", "same", lambda k: k == 0, lambda k: k == 0,
    ),
    Claim(
        f"permuted at random the mask is as good as it is, within {MARGIN:g} pp (by symmetry)",
        "random_permutation", "naive", "same", lambda k: True,
    ),
    Claim(
        "A's ticket as it is serves B better than a random mask of its layer densities",
        "naive", "random_mask", "more", lambda k: True,
    ),
)  # fmt: skip


def of_sparse_runs(results: pd.DataFrame, sparsity: float = 0.90) -> pd.DataFrame:
    """The claims about sparse training at one sparsity; those without runs are left out.

    The paper's column is its table of the same net, or else, as it says, of another (its nominal
    k = 0 is one trained epoch); ours is whatever `results` holds, as difference and 90% interval
    for every k: of the mean, or from `COLLAPSING` on of the median, which takes five pairs to say
    anything.
    """
    at = _at(results, sparsity)
    there, quoted = set(at["method"]), _grid(results)
    rows = []
    for claim in CLAIMS:
        if not {claim.first, claim.second} <= there:
            continue
        cells = paired(at, claim.first, claim.second)
        each = {f"k={k}": values for (_, k), values in cells.items() if claim.applies(k)}
        if each:
            what = f"{claim.first} − {claim.second}, pp: "
            said = _published(quoted, sparsity, claim)
            rows.append(row(claim.text, said, what, each, claim.kind, _spread(sparsity)))
    return pd.DataFrame(rows, columns=COLUMNS)


def of_rewinding(results: pd.DataFrame, sparsity: float = 0.90) -> pd.DataFrame:
    """The claims about later starts at one sparsity, where every start is trained equally long.

    Empty where the budgets differ, or there are fewer than three rewind epochs.
    """
    at = _at(results, sparsity)
    runs = at[at["rewind_epoch"].notna()]
    starts = sorted(map(int, runs["rewind_epoch"].unique()))
    if runs["epochs"].nunique() != 1 or len(starts) < 3:
        return pd.DataFrame(columns=COLUMNS)
    first, middle, last = starts[0], starts[len(starts) // 2], starts[-1]
    accuracy, quoted = _accuracies(at), _grid(results)
    rows = []
    for method, kind, text in (
        ("lth", "more", f"LTH rises from k = {first} to k = {last}"),
        ("permuted", "more", f"permuted rises from k = {first} to k = {last}"),
        (
            "naive",
            "same",
            f"naive stays as it is from k = {first} to k = {last}, within {MARGIN:g} pp",
        ),
    ):
        if method in accuracy:
            rise = accuracy[method][last] - accuracy[method][first]
            said = _rise(quoted, sparsity, method)
            what = f"{method}, pp: "
            label = f"k={first} → {last}"
            rows.append(row(text, said, what, {label: rise}, kind, _spread(sparsity)))
    for method in ("lth", "permuted"):
        if method in accuracy:
            at = accuracy[method]
            bend = (at[middle] - at[first]) - (at[last] - at[middle])
            label = f"k={first} → {middle} less k={middle} → {last}"
            text = f"{'LTH' if method == 'lth' else method} levels off: it rises more at first"
            said, spread = _rise(quoted, sparsity, method, bend=True), _spread(sparsity)
            rows.append(row(text, said, "rise, pp: ", {label: bend}, "more", spread))
    return pd.DataFrame(rows, columns=COLUMNS)


def of_sparsities(results: pd.DataFrame, rewind_epoch: int) -> pd.DataFrame:
    """The claims about sparser masks, from one rewind epoch, below `COLLAPSING`."""
    at = results[results["rewind_epoch"] == rewind_epoch]
    sparsities = sorted(s for s in at["sparsity"].unique() if s < COLLAPSING)
    if len(sparsities) < 2:
        return pd.DataFrame(columns=COLUMNS)
    low, high = sparsities[0], sparsities[-1]
    quoted = _grid(results)
    rows = []
    for first, second, text in (
        ("lth", "naive", "the sparser the mask, the more naive lacks to LTH"),
        ("permuted", "naive", "the sparser the mask, the more permuting it gains"),
    ):
        if {first, second} <= set(at["method"]):
            cells = paired(at, first, second)
            wide, narrow = (cells[s, rewind_epoch].droplevel([0, 1]) for s in (high, low))
            growth = wide - narrow
            said = [_difference(quoted, s, first, second, _later) for s in (low, high)]
            label = f"S={low:.0%} → {high:.0%}"
            what = f"{first} − {second} grows by, pp: "
            rows.append(row(text, f"{quoted.net}: {' → '.join(said)}", what, {label: growth}))
    return pd.DataFrame(rows, columns=COLUMNS)


def against_dense(results: pd.DataFrame, sparsity: float = 0.90) -> pd.DataFrame:
    """The claims that hold LTH and IMP against dense A, at one sparsity."""
    of_a = results[results["net"] == "A"]
    net = 100 * of_a[of_a["method"] == "dense"].set_index("seed")["test_accuracy"]
    pruned = 100 * _at(of_a[of_a["method"] == "imp"], sparsity).set_index("seed")["test_accuracy"]
    cells = {"IMP": {f"S={sparsity:.0%}": (pruned - net).dropna()}}
    lth = _accuracies(_at(results, sparsity)).get("lth", {})
    cells["LTH"] = {f"k={k}": (each - net).dropna() for k, each in lth.items() if k >= 1}
    quoted, theirs = _grid(results), published.table("dense_accuracies")
    model, _, dataset = quoted.net.partition(", ")
    theirs = theirs[(theirs["model"] + "×" + theirs["width"].astype(str) == model)]
    whole = theirs[theirs["dataset"] == dataset]["dense_test_acc"]
    rows = []
    for method, each in cells.items():
        text = f"{method} is no worse than dense A, by {MARGIN:g} pp"
        said = "not in the paper"
        if method == "LTH" and len(whole) and sparsity in quoted.means.index.levels[0]:
            best = quoted.means.loc[sparsity, "lth"].max() - whole.iloc[0]
            said = f"{quoted.net}: at best {best:+.2f} pp"
        if each and all(len(values) for values in each.values()):
            what = f"{method} − dense, pp: "
            rows.append(row(text, said, what, each, "no worse", _spread(sparsity)))
    return pd.DataFrame(rows, columns=COLUMNS)


def of_budgets(study: Study) -> pd.DataFrame:
    """The claims about what "the rest of T" does to the comparison; see `stages.budgets`."""
    table = budgets.table(study)
    kinds, ends = table["budget"].unique(), sorted(table["rewind_epoch"].unique())
    if len(kinds) < 2 or "the rest of T" not in kinds or len(ends) < 2:
        return pd.DataFrame(columns=COLUMNS)
    first, last = ends[0], ends[-1]
    at = 100 * table.pivot_table("test_accuracy", "seed", ["budget", "method", "rewind_epoch"])
    equal = [kind for kind in kinds if kind != "the rest of T"][-1]
    rest, same = at["the rest of T"], at[equal]
    s = study.settings
    sparsity = s.closer_look.sparsity
    quoted = published.grid(s.model.name, s.model.width, s.data.source)
    falls = rest["naive"][first] - rest["naive"][last]
    gain = {
        name: runs["permuted"][last] - runs["naive"][last]
        for name, runs in (("rest", rest), ("same", same))
    }
    rows = [
        row(
            f"with the rest of T, naive falls from k = {first} to k = {last}",
            _rise(quoted, sparsity, "naive"),
            "falls by, pp: ",
            {f"k={first} → {last}": falls},
        ),
        row(
            f"with the rest of T, permuting gains more at k = {last} than with {equal}",
            "not in the paper",
            "more by, pp: ",
            {f"k={last}": gain["rest"] - gain["same"]},
        ),
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def of_rescaling(study: Study) -> pd.DataFrame:
    """The claims about starts that are rescaled to their mask; see `stages.rescaling`."""
    table = rescaling.table(study)
    gain = 100 * (table["rescaled"] - table["as_it_is"])
    each = gain.groupby([table["method"], table["rewind_epoch"], table["seed"]]).first()
    rows = []
    for method in each.index.unique("method"):
        cells = {f"k={k}": values for k, values in each[method].groupby("rewind_epoch")}
        text = f"{method} trains better from a start that is rescaled to the mask"
        said = "meant in the released code, and never done"
        rows.append(row(text, said, "rescaled − as it is, pp: ", cells))
    return pd.DataFrame(rows, columns=COLUMNS)


# ------------------------------------------------------------------------ cells


def _at(results: pd.DataFrame, sparsity: float) -> pd.DataFrame:
    return results[results["sparsity"].sub(sparsity).abs() < 1e-9]


def _accuracies(results: pd.DataFrame) -> dict[str, dict[int, pd.Series]]:
    """Method -> rewind epoch -> accuracy in % by seed."""
    found: dict[str, dict[int, pd.Series]] = {}
    sparse = results[results["rewind_epoch"].notna() & ~results["diverged"]]
    for (method, k), runs in sparse.groupby(["method", "rewind_epoch"]):
        found.setdefault(method, {})[int(k)] = 100 * runs.set_index("seed")["test_accuracy"]
    return found


def _spread(sparsity: float) -> str:
    return "any" if sparsity >= COLLAPSING else "normal"


# ------------------------------------------------------------------------ quoting


def _grid(results: pd.DataFrame) -> Grid:
    first = results.iloc[0]
    return published.grid(first["model"], first["width"], first["dataset"])


def _later(rewind_epoch: int) -> bool:
    return rewind_epoch >= _IN_THE_PAPER


def _published(grid: Grid, sparsity: float, claim: Claim) -> str:
    if claim.quoted is None:
        return "not in the paper"
    return f"{grid.net}: {_difference(grid, sparsity, claim.first, claim.second, claim.quoted)}"


def _difference(
    grid: Grid, sparsity: float, first: str, second: str, applies: Callable[[int], bool]
) -> str:
    means = grid.means[grid.means.index.get_level_values("sparsity") == sparsity]
    means = means[means.index.get_level_values("rewind_epoch").map(applies)]
    if means.empty:
        return f"nothing at {sparsity:.0%}"
    each = means[first] - means[second]
    if len(each) == 1:
        return f"{each.iloc[0]:+.2f} pp"
    return f"{each.min():+.2f} … {each.max():+.2f} pp"


def _rise(grid: Grid, sparsity: float, method: str, bend: bool = False) -> str:
    """How far a method rises from the first published rewind epoch to the last.

    bend: in two halves.
    """
    if sparsity not in grid.means.index.levels[0]:
        return f"{grid.net}: nothing at {sparsity:.0%}"
    of_method = grid.means.loc[sparsity, method].dropna()
    stops = of_method.iloc[[0, len(of_method) // 2, -1] if bend else [0, -1]]
    rises = ", then ".join(f"{rise:+.2f}" for rise in stops.diff().dropna())
    ways = " → ".join(map(str, stops.index))
    return f"{grid.net}, k = {ways} with the rest of T: {rises} pp"
