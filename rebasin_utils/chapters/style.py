"""How every figure looks: one colour and one marker a method, large type, a still twin.

The colours are Okabe and Ito's, safe for the colour-blind.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from IPython.display import display

from rebasin_utils.chapters import still
from rebasin_utils.files import replace_synced

COLOURS = {
    "dense": "#555555",
    "imp": "#56B4E9",
    "lth": "#0072B2",
    "permuted": "#009E73",
    "naive": "#D55E00",
    "random_permutation": "#CC79A7",
    "random_mask": "#E69F00",
}
SYMBOLS = {
    "lth": "circle",
    "permuted": "diamond",
    "naive": "square",
    "random_permutation": "triangle-up",
    "random_mask": "triangle-down",
}
#: What a reader sees in place of the name in the table.
METHOD_NAMES = {
    "dense": "dense",
    "imp": "IMP",
    "lth": "LTH: A with its mask",
    "permuted": "permuted: B with π(mask)",
    "naive": "naive: B with A's mask",
    "random_permutation": "B with random π(mask)",
    "random_mask": "B with a random mask",
}
#: Of the paths between two nets, which are about matching and not about a method.
PATHS = {
    "unmatched": ("A to B as trained", COLOURS["naive"], "solid"),
    "matched": ("π(A) to B", COLOURS["permuted"], "solid"),
    "unmatched_bn_reset": ("A to B, batch norm reset", COLOURS["naive"], "dot"),
    "matched_bn_reset": ("π(A) to B, batch norm reset", COLOURS["permuted"], "dot"),
    "unmatched_repair": ("A to B, REPAIR", COLOURS["naive"], "dash"),
    "matched_repair": ("π(A) to B, REPAIR", COLOURS["permuted"], "dash"),
}


def show(figure: go.Figure) -> None:
    """Display a figure in a notebook, with a still picture for viewers without JavaScript."""
    display(live(figure) | picture(figure), raw=True)


def live(figure: go.Figure) -> dict:
    """The figure as notebooks display it: MIME type -> content."""
    return {"application/vnd.plotly.v1+json": json.loads(figure.to_json())}


def picture(figure: go.Figure) -> dict:
    """Its still picture: MIME type -> content."""
    return {"image/png": base64.b64encode(still.png(figure)).decode()}


def save(figure: go.Figure, folder: Path, name: str, table: pd.DataFrame) -> None:
    """Write `name`.png, `name`.html and `name`.csv, the data that made it.

    The page needs `plotly.min.js` beside it.
    """
    replace_synced(folder / f"{name}.png", still.png(figure, dpi=150))
    html = figure.to_html(include_plotlyjs="directory", div_id=name)
    replace_synced(folder / f"{name}.html", html.encode())
    replace_synced(folder / f"{name}.csv", table.to_csv(index=False).encode())


def blank(x_title: str, y_title: str) -> go.Figure:
    """An empty figure with the project's looks."""
    figure = go.Figure()
    lay_out(figure, x_title, y_title)
    return figure


def lay_out(figure: go.Figure, x_title: str, y_title: str) -> None:
    """Give a figure, of one panel or several, the project's looks."""
    figure.update_layout(
        template="simple_white",
        font_size=15,
        width=900,
        height=520,
        margin=dict(l=75, r=20, t=90, b=65),
        title=dict(x=0.02, xanchor="left", font_size=18),
    )
    figure.update_xaxes(title=x_title)
    figure.update_yaxes(title=y_title, showgrid=True, gridcolor="#eeeeee")


def bars(half_widths: Sequence[float]) -> dict:
    """Error bars; none where an interval is infinite (a single run)."""
    return dict(array=[h if np.isfinite(h) else 0 for h in half_widths], thickness=1.5)


def add_slider(
    figure: go.Figure, labels: Sequence[str], titles: Sequence[str], first: int, prefix: str
) -> None:
    """A slider of plotly's own, which works in every viewer: equal runs of traces, one a step."""
    each = len(figure.data) // len(labels)
    steps = []
    for i, (label, title) in enumerate(zip(labels, titles, strict=True)):
        visible = [each * i <= j < each * (i + 1) for j in range(len(figure.data))]
        steps.append(
            dict(method="update", label=label, args=[{"visible": visible}, {"title.text": title}])
        )
    for trace, shown in zip(figure.data, steps[first]["args"][0]["visible"], strict=True):
        trace.visible = shown
    figure.update_layout(
        title_text=titles[first],
        height=600,
        sliders=[dict(active=first, steps=steps, currentvalue_prefix=prefix, pad_t=60)],
    )
