"""Notebook 11: do the signs of a ticket bring its basin along?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from rebasin_utils.chapters.chapter import Chapter, Picture, with_signs
from rebasin_utils.chapters.evidence import COLUMNS, interval, row
from rebasin_utils.chapters.judgement import MARGIN, Kind
from rebasin_utils.chapters.style import COLOURS, bars, blank
from rebasin_utils.study.stages import sign_paths, sign_transfer, stability
from rebasin_utils.study.study import Study

#: What is carried over, in the order of how much it is, in words.
KINDS = {
    "random_mask": "random mask",
    "mask": "mask",
    "shuffled": "mask, signs shuffled",
    "signs": "signs",
    "signs+classifier": "signs, and the classifier's",
    "signs+gamma": "signs and γ",
    "signs+beta": "signs and β",
    "signs+norms": "signs, γ and β",
    "solution": "all: the solution",
}
PROCEDURES = {
    "lrr": ("LRR", COLOURS["lth"], "circle"),
    "aws": ("AWS", COLOURS["permuted"], "diamond"),
    "finetuning": ("fine-tuning", COLOURS["imp"], "square"),
}


class WinningSign(Chapter):
    notebook = "11-winning-sign"
    stages = ("sign_transfer", "sign_paths", "stability")

    def studies(self, studies: Sequence[Study]) -> list[Study]:
        return with_signs(studies)

    def pictures(self, studies: Sequence[Study]) -> Iterator[Picture]:
        for study in self.studies(studies):
            name, table = study.settings.name, to_init(sign_transfer.table(study))
            yield Picture(f"{name}-accuracies", accuracies(table), table)
            table = to_init(sign_paths.table(study))
            yield Picture(f"{name}-barriers", barriers(table), table)

    def verdicts(self, studies: Sequence[Study]) -> Iterator[tuple[str, pd.DataFrame]]:
        for study in self.studies(studies):
            yield f"{study.settings.name}, signs", of_signs(study)


WINNING_SIGN = WinningSign()


def to_init(table: pd.DataFrame) -> pd.DataFrame:
    """The transfers of A's last ticket to B's init, under A's own names and in the usual order."""
    plain = table[(table["round"] == table["round"].max()) & (table["rewind_epoch"] == 0)]
    plain = plain[plain["address"] == ""]
    if "owner" in plain:
        plain = plain[(plain["owner"] == "A") & (plain["order"] == 0) & (plain["net"] == "")]
    return plain.reset_index(drop=True)


def accuracies(table: pd.DataFrame, quantity: str = "accuracy") -> go.Figure:
    """Accuracy after training (or `before` it) against what was carried over, by procedure.

    table: as `to_init` gives it of `sign_transfer.table`. Large marks are means, bars 95%
    intervals, small ones the pairs.
    """
    when = "after training" if quantity == "accuracy" else "before training"
    figure = _by_kind(table, quantity, f"test accuracy {when}, %")
    mean = table.groupby(["procedure", "kind"])[quantity].mean()
    said = [f"{KINDS[k]} {mean['lrr', k]:.1f}" for k in ("mask", "signs", "solution")]
    figure.update_layout(
        title=f"LRR, % {when}: {', '.join(said)}<br><sup>{table['kept'].mean():.1%} of the weights "
        f"kept; small marks: the {table['seed'].nunique()} pairs, large: their mean, bars: 95% "
        "intervals</sup>"
    )
    return figure


def barriers(table: pd.DataFrame) -> go.Figure:
    """Error barrier to the solution with the same mask against what was carried over.

    table: as `to_init` gives it of `sign_paths.table`.
    """
    figure = _by_kind(table, "barrier", "error barrier to the solution, pp")
    mean = table[table["procedure"] == "lrr"].groupby("kind")["barrier"].mean()
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(
        title=f"To the solution of the same mask: barrier {mean['mask']:.1f} pp with the mask, "
        f"{mean['signs']:.1f} pp with its signs<br><sup>LRR; small marks: the "
        f"{table['seed'].nunique()} pairs, large: their mean, bars: 95% intervals</sup>"
    )
    return figure


def _by_kind(table: pd.DataFrame, quantity: str, y_title: str) -> go.Figure:
    figure = blank("carried over to B's init", y_title)
    there = [kind for kind in KINDS if kind in set(table["kind"])]
    table = table.sort_values("kind", key=lambda kinds: kinds.map(there.index), kind="stable")
    for procedure, (name, colour, symbol) in PROCEDURES.items():
        at = table[table["procedure"] == procedure]
        points = {
            kind: interval(at[at["kind"] == kind][quantity])
            for kind in there
            if (at["kind"] == kind).any()
        }
        if not points:
            continue
        figure.add_scatter(
            x=[KINDS[kind] for kind in at["kind"]],
            y=at[quantity],
            mode="markers",
            marker=dict(symbol=symbol, size=6, color=colour, opacity=0.4),
            showlegend=False,
            hoverinfo="skip",
        )
        figure.add_scatter(
            x=[KINDS[kind] for kind in points],
            y=[mean for mean, _, _ in points.values()],
            error_y=bars([high - mean for mean, _, high in points.values()]),
            mode="markers",
            name=name,
            marker=dict(symbol=symbol, size=13, color=colour),
        )
    names = [KINDS[kind] for kind in there]
    figure.update_xaxes(categoryorder="array", categoryarray=names)
    return figure


def summary(study: Study) -> pd.DataFrame:
    """Every ticket: procedure, kept, kind; accuracy before and after, barrier; means and n."""
    table = sign_transfer.table(study)
    plain = table[(table["rewind_epoch"] == 0) & (table["address"] == "") & (table["owner"] == "A")]
    plain = plain[(plain["order"] == 0) & (plain["net"] == "")]
    by = ["procedure", "round", "kind"]
    means = plain.groupby(by, sort=False).agg(
        kept=("kept", "mean"),
        before=("before", "mean"),
        accuracy=("accuracy", "mean"),
        std=("accuracy", "std"),
        n=("accuracy", "count"),
    )
    ways = sign_paths.table(study)
    ways = ways[(ways["rewind_epoch"] == 0) & (ways["address"] == "")]
    barrier = ways.groupby(by)["barrier"].mean()
    table = means.assign(barrier=barrier).reset_index()
    order = {kind: i for i, kind in enumerate(KINDS)}
    table = table.sort_values(by, key=lambda c: c.map(order) if c.name == "kind" else c)
    return table.assign(kind=table["kind"].map(KINDS), kept=100 * table["kept"])


@dataclass(frozen=True)
class Claim:
    """`first` against `second`, or against nothing, by some quantity of the transfers.

    quantity: "accuracy" or "before" training; or the "barrier" to the solution, or between two
    "orders" of the data, with its sign changed. paper: what Oh et al. 2025 say, or who is named;
    without_norms: of nets without norm layers.
    """

    text: str
    paper: str
    quantity: str
    first: tuple[str, str]
    second: tuple[str, str] | None
    kind: Kind = "more"
    without_norms: str = ""


_WITHIN = f"within {MARGIN:g} pp"
_MASK, _SIGNS, _SOLUTION = ("lrr", "mask"), ("lrr", "signs"), ("lrr", "solution")
_NO_NORMS = "no, with norm layers"

CLAIMS = (
    Claim("LRR's signs serve B better than its mask", _NO_NORMS,
          "accuracy", _SIGNS, _MASK, without_norms="not in the paper"),
    Claim("shuffled, LRR's signs serve no better than the mask", "not in the paper",
          "accuracy", _MASK, ("lrr", "shuffled"), "no worse"),
    Claim(f"LRR's signs reach the LRR solution, {_WITHIN}", _NO_NORMS,
          "accuracy", _SIGNS, _SOLUTION, "no worse", without_norms="not in the paper"),
    Claim(f"LRR's signs with γ and β reach the LRR solution, {_WITHIN}", "yes",
          "accuracy", ("lrr", "signs+norms"), _SOLUTION, "no worse"),
    Claim("AWS's signs serve B better than LRR's", "yes", "accuracy", ("aws", "signs"), _SIGNS),
    Claim(f"AWS's signs reach the AWS solution, {_WITHIN}", "yes",
          "accuracy", ("aws", "signs"), ("aws", "solution"), "no worse"),
    Claim(f"AWS costs nothing: its solution is no worse than LRR's, {_WITHIN}", "yes",
          "accuracy", ("aws", "solution"), _SOLUTION, "no worse"),
    Claim("the classifier's signs help beyond those of the mask", "not told apart",
          "accuracy", ("lrr", "signs+classifier"), _SIGNS),
    Claim("LRR is better than fine-tuning at equal epochs", "yes (Renda et al. 2020)",
          "accuracy", _SOLUTION, ("finetuning", "solution")),
    Claim("before any training, signs are better than the mask", "yes (Zhou et al. 2019)",
          "before", _SIGNS, _MASK),
    Claim("before any training, signs with the classifier's are better than the mask",
          "yes (Zhou et al. 2019)", "before", ("lrr", "signs+classifier"), _MASK),
    Claim("with LRR's signs B ends nearer to the solution than with its mask", "yes",
          "barrier", _SIGNS, _MASK),
    Claim("with AWS's signs B ends nearer to the solution than with its mask", "yes",
          "barrier", ("aws", "signs"), ("aws", "mask")),
    Claim(f"with LRR's signs B ends in the solution's mode: no barrier of {MARGIN:g} pp", _NO_NORMS,
          "barrier", _SIGNS, None, "no worse", without_norms="not in the paper"),
    Claim(f"with AWS's signs B ends in the solution's mode: no barrier of {MARGIN:g} pp", "yes",
          "barrier", ("aws", "signs"), None, "no worse"),
    Claim("signs make B more stable to SGD noise than the mask", "yes", "orders", _SIGNS, _MASK),
    Claim("AWS's signs make B more stable to SGD noise than LRR's", "yes",
          "orders", ("aws", "signs"), _SIGNS),
)  # fmt: skip


def of_signs(study: Study) -> pd.DataFrame:
    """The claims about what a signed mask carries; those without runs are left out.

    From B's init, after the last of the rounds. No accuracy table of Oh et al. 2025 is known to us,
    so the paper's column says in a word what they claim.
    """
    transfers, ways = to_init(sign_transfer.table(study)), to_init(sign_paths.table(study))
    noise = stability.table(study)
    values = {
        "accuracy": _by_seed(transfers, "accuracy"),
        "before": _by_seed(transfers, "before"),
        "barrier": -_by_seed(ways, "barrier"),
        "orders": -_by_seed(noise[noise["noise"] == "orders"], "barrier"),
    }
    norms = "aws" in study.settings.signs.procedures
    rows = []
    for claim in CLAIMS:
        table = values[claim.quantity]
        if not {claim.first, claim.second or claim.first} <= set(table):
            continue
        difference = table[claim.first] - (table[claim.second] if claim.second else 0)
        paper = claim.paper if norms else claim.without_norms or claim.paper
        less = "barrier lower by" if claim.second else "barrier with its sign changed"
        what = "" if claim.quantity in ("accuracy", "before") else f"{less}, "
        label = f"{difference.index.size} pairs"
        rows.append(row(claim.text, paper, f"{what}pp: ", {label: difference}, claim.kind))
    return pd.DataFrame(rows, columns=COLUMNS)


def _by_seed(table: pd.DataFrame, values: str) -> pd.DataFrame:
    return table.pivot(index="seed", columns=["procedure", "kind"], values=values)
