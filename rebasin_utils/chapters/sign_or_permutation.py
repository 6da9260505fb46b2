"""Notebook 12: sign or permutation? What carries a mask to another net's basin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
import plotly.graph_objects as go

from rebasin_utils.chapters.chapter import Chapter, Picture, with_signs
from rebasin_utils.chapters.evidence import COLUMNS, interval, row
from rebasin_utils.chapters.judgement import MARGIN
from rebasin_utils.chapters.style import COLOURS, bars, blank
from rebasin_utils.errors import InputError
from rebasin_utils.study.stages import sign_agreement, sign_paths, sign_transfer
from rebasin_utils.study.study import Study

#: What is put on B, under which names.
STARTS = {
    ("mask", ""): "mask",
    ("mask", "pi"): "π(mask)",
    ("signs", ""): "signed mask",
    ("signs", "pi"): "π(signed mask)",
    ("signs", "random"): "ρ(signed mask)",
    ("shuffled", ""): "signs shuffled",
}
_COLOURS = {"": COLOURS["naive"], "pi": COLOURS["permuted"]}


class SignOrPermutation(Chapter):
    notebook = "12-sign-or-permutation"
    stages = ("sign_transfer", "sign_paths", "sign_agreement")

    def studies(self, studies: Sequence[Study]) -> list[Study]:
        found = [s for s in with_signs(studies) if s.settings.signs.rewind_epochs]
        if not found:
            raise InputError(
                "no study of this preset puts a ticket on B after several epochs: choose another, "
                "e.g. pocket, or set signs.rewind_epochs"
            )
        return found

    def pictures(self, studies: Sequence[Study]) -> Iterator[Picture]:
        for study in self.studies(studies):
            name, table = study.settings.name, joined(study)
            yield Picture(f"{name}-addresses", addresses(table), table)
            if study.nodes("sign_agreement"):
                table = sign_agreement.table(study)
                yield Picture(f"{name}-agreement", agreement(table), table)

    def verdicts(self, studies: Sequence[Study]) -> Iterator[tuple[str, pd.DataFrame]]:
        for study in self.studies(studies):
            yield f"{study.settings.name}, signs and π", of_both(study)


SIGN_OR_PERMUTATION = SignOrPermutation()


def joined(study: Study) -> pd.DataFrame:
    """LRR's last ticket on B, under every name and from every rewind epoch.

    Returns:
        start (as in `STARTS`), kind, address, rewind_epoch, seed, accuracy (%), barrier (pp, to A's
        solution under the same names), disagreement (% of the images, with A's solution).
    """
    key = ["kind", "address", "rewind_epoch", "seed"]
    runs = sign_transfer.table(study)
    last = runs["round"].max()
    plain = (runs["owner"] == "A") & (runs["order"] == 0) & (runs["net"] == "")
    runs = runs[plain & (runs["procedure"] == "lrr") & (runs["round"] == last)]
    ways = sign_paths.table(study)
    ways = ways[(ways["procedure"] == "lrr") & (ways["round"] == last)]
    both = runs[[*key, "accuracy"]].merge(ways[[*key, "barrier", "disagreement"]], on=key)
    names = [STARTS.get(which) for which in zip(both["kind"], both["address"], strict=True)]
    return both.assign(start=names).dropna(subset="start").reset_index(drop=True)


def addresses(table: pd.DataFrame) -> go.Figure:
    """Error barrier to A's solution under the names that were given, by what was put on B.

    table: as `joined` gives it. One series a rewind epoch; bars are 95% intervals over the pairs.
    """
    figure = blank("put on B", "error barrier to the predicted address, pp")
    starts = [start for start in STARTS.values() if start in set(table["start"])]
    symbols = ("circle", "diamond", "square", "triangle-up")
    epochs = sorted(table["rewind_epoch"].unique())
    for k, symbol in zip(epochs, symbols, strict=False):
        at = table[table["rewind_epoch"] == k]
        points = {s: interval(at[at["start"] == s]["barrier"]) for s in starts}
        figure.add_scatter(
            x=starts,
            y=[mean for mean, _, _ in points.values()],
            error_y=bars([high - mean for mean, _, high in points.values()]),
            mode="markers",
            name=f"B after {k} epochs" if k else "B's init",
            marker=dict(symbol=symbol, size=13, color=COLOURS["lth"]),
        )
    mean = table[table["rewind_epoch"] == epochs[0]].groupby("start")["barrier"].mean()
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(
        title=f"To its address from B's init: π(signed mask) {mean['π(signed mask)']:.1f} pp, "
        f"π(mask) {mean['π(mask)']:.1f} pp<br><sup>barrier of the test error between nets of one "
        f"mask; mean of {table['seed'].nunique()} pairs, bars: 95% intervals</sup>"
    )
    return figure


def agreement(table: pd.DataFrame) -> go.Figure:
    """Agreement of B's signs with the ticket's against B's epoch, with and without π.

    table: as `sign_agreement.table` gives it.
    """
    figure = blank("epoch of B", "signs that agree, % of the kept weights")
    means = {}
    for address, name in (("", "A's ticket as it is"), ("pi", "π(A's ticket)")):
        at = table[table["address"] == address]
        points = {e: interval(100 * v) for e, v in at.groupby("epoch")["agreement"]}
        means[address] = [mean for mean, _, _ in points.values()]
        figure.add_scatter(
            x=list(points),
            y=means[address],
            error_y=bars([high - mean for mean, _, high in points.values()]),
            mode="lines+markers",
            name=name,
            line_color=_COLOURS[address],
            marker_size=10,
        )
    figure.add_hline(50, line=dict(color=COLOURS["dense"], dash="dash"))
    figure.update_layout(
        title=f"Signs that agree, %: with π {means['pi'][0]:.0f} → {means['pi'][-1]:.0f}, without "
        f"{means[''][0]:.0f} → {means[''][-1]:.0f}<br><sup>share of the kept weights; mean of "
        f"{table['seed'].nunique()} pairs, bars: 95% intervals; dashed: chance</sup>"
    )
    return figure


def of_both(study: Study) -> pd.DataFrame:
    """What theory predicts of masks and signs, with and without π, and what was measured.

    Training commutes with relabelling, and the magnitudes of an init are exchangeable: under any
    permutation a signed mask trains to one law of accuracy, and to the address that it was given.
    """
    table = joined(study)
    accuracy, barrier = (
        table.pivot(index="seed", columns=["start", "rewind_epoch"], values=values)
        for values in ("accuracy", "barrier")
    )
    epochs = sorted(table["rewind_epoch"].unique())
    first, later = epochs[0], epochs[1:]
    within = f"within {MARGIN:g} pp"
    rows = [
        row(
            f"at k = {first} π makes no difference to the mask's accuracy, {within}",
            "predicted", "π(mask) − mask, pp: ",
            {f"k={first}": accuracy["π(mask)", first] - accuracy["mask", first]}, "same",
        ),
        row(
            f"π makes no difference to the signed mask's accuracy, {within} (k = {first})",
            "predicted", "π(signed) − signed, pp: ",
            {f"k={first}": accuracy["π(signed mask)", first] - accuracy["signed mask", first]},
            "same",
        ),
        row(
            f"a random ρ makes no difference to it either, {within}",
            "predicted", "ρ(signed) − signed, pp: ",
            {f"k={k}": accuracy["ρ(signed mask)", k] - accuracy["signed mask", k] for k in epochs},
            "same",
        ),
        row(
            f"shuffled signs serve as the mask does, {within}",
            "predicted", "shuffled − mask, pp: ",
            {f"k={k}": accuracy["signs shuffled", k] - accuracy["mask", k] for k in epochs},
            "same",
        ),
        row(
            "a signed mask ends at the address that it was given, unlike shuffled signs",
            "predicted", "barrier lower by, pp: ",
            {
                f"{start}, k={k}": barrier["signs shuffled", k] - barrier[start, k]
                for start in ("signed mask", "π(signed mask)", "ρ(signed mask)")
                for k in epochs
            },
        ),
    ]  # fmt: skip
    if later:
        rows += [
            row(
                "with π the mask gains over itself as it is, for k > 0",
                "predicted; the first paper's claim", "π(mask) − mask, pp: ",
                {f"k={k}": accuracy["π(mask)", k] - accuracy["mask", k] for k in later},
            ),
            row(
                "with k, π(mask) ends nearer to its address",
                "predicted", f"barrier lower than from k = {first} by, pp: ",
                {f"k={k}": barrier["π(mask)", first] - barrier["π(mask)", k] for k in later},
            ),
            row(
                "with signs π(mask) is better than without, for k > 0",
                "not in the papers", "π(signed) − π(mask), pp: ",
                {f"k={k}": accuracy["π(signed mask)", k] - accuracy["π(mask)", k] for k in later},
            ),
        ]  # fmt: skip
    if study.nodes("sign_agreement"):
        rows += _of_agreement(sign_agreement.table(study))
    return pd.DataFrame(rows, columns=COLUMNS)


def _of_agreement(table: pd.DataFrame) -> list[tuple]:
    share = 100 * table.pivot(index="seed", columns=["address", "epoch"], values="agreement")
    first, last = table["epoch"].min(), table["epoch"].max()
    grown = {address: share[address, last] - share[address, first] for address in ("", "pi")}
    label = f"k={first} → {last}"
    return [
        row(
            "with π the signs of B come to agree with the ticket's as k grows",
            "predicted", "agreement grows by, pp: ", {label: grown["pi"]},
        ),
        row(
            "without π they do so less",
            "predicted", "agreement grows less by, pp: ", {label: grown["pi"] - grown[""]},
        ),
    ]  # fmt: skip
