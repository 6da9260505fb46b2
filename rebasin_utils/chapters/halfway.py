"""Halfway between A and B, as several chapters show it: the path, and claims about its middle."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from rebasin_utils.chapters import published
from rebasin_utils.chapters.evidence import COLUMNS, on_images, row
from rebasin_utils.chapters.style import PATHS, blank
from rebasin_utils.landscape.interpolation import barrier
from rebasin_utils.study.stages import connectivity
from rebasin_utils.study.study import Study


def paths(table: pd.DataFrame, quantity: str = "accuracy", repaired: bool = False) -> go.Figure:
    """Accuracy (or loss) along the path between A and B, for every kind of path in the table.

    Args:
        table: columns path, alpha, seed, accuracy, loss. Lines are means over pairs, thin lines
            pairs.
        repaired: with the paths on which the nets were repaired.
    """
    percent = 100 if quantity == "accuracy" else 1
    label = "test accuracy, %" if quantity == "accuracy" else "test loss, nats"
    figure = blank("α: from A (0) to B (1)", label)
    middle = {}
    for kind, (name, colour, dash) in PATHS.items():
        rows = table[table["path"] == kind]
        if rows.empty or (kind.endswith("repair") and not repaired):
            continue
        for _, one in rows.groupby("seed"):
            figure.add_scatter(
                x=one["alpha"],
                y=percent * one[quantity],
                mode="lines",
                line=dict(color=colour, width=1, dash=dash),
                opacity=0.35,
                showlegend=False,
                hoverinfo="skip",
            )
        mean = percent * rows.groupby("alpha")[quantity].mean()
        middle[kind] = mean.loc[0.5] if 0.5 in mean.index else float("nan")
        figure.add_scatter(
            x=mean.index,
            y=mean,
            mode="lines+markers",
            name=name,
            line=dict(color=colour, dash=dash, width=3),
            marker_size=9,
        )
    unit = "%" if quantity == "accuracy" else ""
    before, after = middle.get("unmatched"), middle.get("matched")
    figure.update_layout(
        title=f"Halfway between the nets: {before:.1f}{unit} as trained, {after:.1f}{unit} after "
        f"matching<br><sup>test {quantity}; thin: the {table['seed'].nunique()} pairs, thick: "
        "their mean</sup>"
    )
    return figure


def of_paths(study: Study) -> pd.DataFrame:
    """The claims about the point halfway between A and B.

    The paper's column is ResNet20 on CIFAR-10: accuracies are those of the repository of Jordan et
    al. 2023, whose matching the paper uses, the barrier is the paper's own. Of the study's width
    where that was published, else ×1, as it says.
    """
    s = study.settings
    repair = published.table("ref_repair_resnet20_bn_midpoint")
    repair = repair[repair["dataset"] == "CIFAR-10"]
    digitised = published.table("fig3_lmc_barriers_digitised")
    digitised = digitised[digitised["model_dataset"] == "ResNet20/CIFAR-10"]
    both = set(repair["width"]) & set(digitised["width"])
    there = s.model.name == "resnet20" and s.model.width in both
    width = s.model.width if there else 1
    reported = repair[repair["width"] == width].set_index("variant")["test_acc"]
    plain = reported["permuted_midpoint_no_bn_reset"]
    reset = reported["permuted_midpoint_bn_reset"]
    net = f"ResNet20×{width}: "
    theirs = f"Jordan et al., {net}"
    claims = (
        (
            "matching raises the accuracy halfway",
            "unmatched", "matched", f"{theirs}to {plain:.1f}%",
        ),
        (
            "recomputing batch norm's statistics raises it further",
            "matched", "matched_bn_reset", f"{theirs}{plain:.1f} → {reset:.1f}%",
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
    table = connectivity.paths(study)
    middle = 100 * table[table["alpha"] == 0.5].pivot_table("accuracy", "seed", "path")
    rows = []
    for claim, before, after, paper in claims:
        if {before, after} <= set(middle):
            means = f"{middle[before].mean():.1f} → {middle[after].mean():.1f}%"
            difference = {means: middle[after] - middle[before]}
            what = f"{after} − {before}, pp{on_images(study)}: "
            rows.append(row(claim, paper, what, difference))
    barriers = connectivity.barriers(study)
    loss = barriers[barriers["split"] == "test"].pivot(index="seed", columns="path", values="loss")
    curve = digitised[digitised["width"] == width]
    published_barrier = barrier(list(curve["test_loss"]), list(curve["alpha"]))
    means = f"{loss['unmatched'].mean():.2f} → {loss['matched'].mean():.2f} nats"
    rows.append(
        row(
            "matching lowers the barrier of the loss",
            f"{net}to {published_barrier:.2f} nats, batch norm reset",
            f"unmatched − matched, nats{on_images(study)}: ",
            {means: loss["unmatched"] - loss["matched"]},
        )
    )
    return pd.DataFrame(rows, columns=COLUMNS)
