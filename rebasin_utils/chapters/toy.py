"""Notebook 01: why does a mask that fits one init not fit another? The toy nets' figures.

The landscape is drawn twice, as contours and as a surface, with the same colours and paths. Loss is
on a log scale, cut off at `FLOOR`, as in a minimum it is zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.graph_objects import Scatter, Scatter3d

from rebasin_utils.chapters.chapter import Chapter, Picture
from rebasin_utils.chapters.style import (
    COLOURS,
    METHOD_NAMES,
    PATHS,
    SYMBOLS,
    add_slider,
    blank,
    lay_out,
)
from rebasin_utils.landscape import toy, toy_rewind, toy_widths
from rebasin_utils.landscape.interpolation import barrier
from rebasin_utils.landscape.toy import HIGH, LOW, NAMES, Run, Setup, Story
from rebasin_utils.landscape.toy_rewind import METHODS, SOLVED
from rebasin_utils.study.study import Study

#: The lowest loss that is told apart from zero.
FLOOR = 0.01
#: Pale where the loss is low, so that the methods' colours stand out.
HEIGHTS = [[0, "#FFFFFF"], [0.35, "#EDF1F6"], [0.7, "#BCC7D6"], [1, "#75869E"]]
_TICKS = {
    "tickvals": [math.log10(loss) for loss in (0.01, 0.1, 1, 10, 50)],
    "ticktext": ["0.01", "0.1", "1", "10", "50"],
}
#: A circle of Bézier curves, radius 12 pixels.
RING = (
    "M12,0C12,6.6,6.6,12,0,12C-6.6,12,-12,6.6,-12,0C-12,-6.6,-6.6,-12,0,-12C6.6,-12,12,-6.6,12,0Z"
)
#: Steps that are closer to a descent's end than this are hidden by the mark there.
END = 0.05
#: Equal with respect to their ends: a factor that is no finding.
ALIKE = 2.0


class Toy(Chapter):
    notebook = "01-toy-landscape"

    def pictures(self, studies: Sequence[Study]) -> Iterator[Picture]:
        """At the notebook's default parameters; it needs no study."""
        story = toy.tell(toy.Setup())
        yield Picture("toy-landscape", landscape(story), story.table())
        shares = toy_rewind.shares(toy_rewind.survey())
        yield Picture("toy-rewinds", rewinds(shares), shares)
        _, paths = toy_widths.compare()
        yield Picture("toy-widths", widths(paths), paths)


TOY = Toy()


def landscape(story: Story) -> go.Figure:
    """The loss over the plane of the weights, from above and as a surface, with the descents."""
    figure, solid = above(story), surface(story)
    figure.add_traces(solid.data)
    figure.update_traces(colorbar_x=0.475, selector=dict(type="contour"))
    figure.update_xaxes(domain=[0, 0.46])
    solid.layout.scene.domain = dict(x=[0.56, 1], y=[0, 1])
    figure.update_layout(
        title_text=finding(story), width=1000, height=590, margin_t=90, scene=solid.layout.scene
    )
    return figure


def above(story: Story) -> go.Figure:
    """The landscape's contours, and the story's five descents through them."""
    axis, loss = toy.landscape()
    figure = blank("weight w₁", "weight w₂")
    figure.add_contour(
        x=axis,
        y=axis,
        z=_height(loss),
        colorscale=HEIGHTS,
        contours=dict(start=-2, end=1.75, size=0.25),
        line=dict(color="#FFFFFF", width=0.7),
        colorbar=dict(title="loss", thickness=12, **_TICKS),
        hoverinfo="skip",
    )
    figure.add_trace(_line((LOW, LOW), (HIGH, HIGH), "mirror", "dot"))
    figure.add_traces(descents(story))
    figure.update_xaxes(range=[LOW, HIGH], showgrid=False)
    figure.update_yaxes(range=[LOW, HIGH], showgrid=False)
    figure.update_layout(
        width=560, height=580, margin_t=20, legend=dict(orientation="h", x=0, y=-0.17)
    )
    return figure


def surface(story: Story) -> go.Figure:
    """The landscape as a surface, and the story's five descents on it."""
    axis, loss = toy.landscape()
    coarse = slice(None, None, 2)  # a surface is slow to draw without a graphics card
    figure = blank("", "")
    figure.add_surface(
        x=axis[coarse],
        y=axis[coarse],
        z=_height(loss)[coarse, coarse],
        colorscale=HEIGHTS,
        showscale=False,
        hoverinfo="skip",
        contours={way: dict(highlight=False) for way in "xyz"},  # slow, and not used
    )
    figure.add_traces(slopes(story))
    figure.update_layout(
        width=440,
        height=480,
        margin=dict(l=0, r=0, t=20, b=0),
        scene=dict(
            xaxis=dict(title="w₁", tickfont_size=11),
            yaxis=dict(title="w₂", tickfont_size=11),
            zaxis=dict(title="", tickfont_size=11, **_TICKS),
            camera=dict(eye=dict(x=1.05, y=1.05, z=2.2), center=dict(x=0, y=0, z=-0.15)),
        ),
    )
    return figure


def descents(story: Story) -> list[Scatter]:
    """All traces from above that change with the story; always as many, in one order."""
    first, second = story.runs["naive"].mask, story.runs["permuted"].mask
    names = ("mask", "π(mask)") if story.swapped else ("mask = π(mask)", "")
    masks = [_mask_line(mask, name) for mask, name in zip((first, second), names, strict=True)]
    return [
        *masks,
        _mirrored(story.runs["A"], story.swapped),
        *(trace for name, run in story.runs.items() for trace in _descent(name, run)),
    ]


def slopes(story: Story) -> list[Scatter3d]:
    """The descents on the surface: always as many, in one order."""
    return [
        Scatter3d(
            x=run.path[:, 0],
            y=run.path[:, 1],
            z=_height(run.losses) + 0.05,
            mode="lines",
            line=dict(color=COLOURS[run.method], width=7),
            showlegend=False,
            hoverinfo="skip",
        )
        for run in story.runs.values()
    ]


def handles(setup: Setup) -> list[dict]:
    """A ring around the init of A and one around that of B, to take hold of."""
    return [
        dict(
            type="path",  # a path can be moved and, unlike a circle, not be resized
            path=RING,
            xsizemode="pixel",
            ysizemode="pixel",
            xanchor=w1,
            yanchor=w2,
            line=dict(color=COLOURS["dense"], width=2),
            fillcolor="rgba(255, 255, 255, 0.55)",
        )
        for w1, w2 in ((setup.a1, setup.a2), (setup.b1, setup.b2))
    ]


def _mask_line(mask: np.ndarray, name: str) -> Scatter:
    """The axis that a mask leaves to move on."""
    keeps_w1 = bool(mask[0])
    ends = ((HIGH, 0), (LOW, 0)) if keeps_w1 else ((0, HIGH), (0, LOW))
    return _line(*ends, name, "dash")


def _line(start: tuple[float, float], end: tuple[float, float], name: str, dash: str) -> Scatter:
    """A line across the contours, named a little after its start."""
    share = 0.12 if start[0] == HIGH else 0.06  # names are written to the right
    inside = [(1 - share) * a + share * b for a, b in zip(start, end, strict=True)]
    return Scatter(
        x=[start[0], inside[0], end[0]],
        y=[start[1], inside[1], end[1]],
        mode="lines+text",
        text=["", name, ""],
        textposition="top right",
        line=dict(color="#222222", width=1.5, dash=dash),
        showlegend=False,
        hoverinfo="skip",
    )


def _mirrored(run: Run, visible: bool) -> Scatter:
    """Where A's descent lies once its units are swapped."""
    return Scatter(
        x=run.path[:, 1],
        y=run.path[:, 0],
        mode="lines+text",
        text=["π(A)"],
        textposition="bottom center",
        line=dict(color=COLOURS["dense"], width=2, dash="dash"),
        visible=visible,
        showlegend=False,
        hoverinfo="skip",
    )


def _descent(name: str, run: Run) -> list[Scatter]:
    """From the init to where the mask puts it (dotted), down step by step, and the end marked."""
    colour, start, end = COLOURS[run.method], run.path[0], run.path[-1]
    dense = run.method == "dense"
    quiet = dict(showlegend=False, hoverinfo="skip")
    arrived = np.linalg.norm(run.path - end, axis=1) < END
    seen = slice(len(arrived) - int(np.argmin(arrived[::-1])) + 1)
    return [
        Scatter(
            x=[run.init[0], start[0]],
            y=[run.init[1], start[1]],
            mode="markers+text" if dense else "lines",
            text=[name] if dense else None,
            textposition="top right",
            line=dict(color=colour, width=1.5, dash="dot"),
            marker=dict(color=colour, size=11),
            **quiet,
        ),
        Scatter(
            x=run.path[seen, 0],
            y=run.path[seen, 1],
            mode="lines+markers",
            line=dict(color=colour, width=3),
            marker=dict(color=colour, size=5),
            customdata=run.losses[seen],
            hovertemplate="step %{pointNumber}: loss %{customdata:.2f}<extra></extra>",
            showlegend=False,
        ),
        Scatter(
            x=[end[0]],
            y=[end[1]],
            mode="markers",
            name=f"{NAMES[name]}: loss {_number(run.end)}",
            marker=dict(color=colour, size=14, symbol=SYMBOLS.get(run.method, "star")),
            hoverinfo="name",
        ),
    ]


def _height(loss: np.ndarray) -> np.ndarray:
    return np.log10(np.maximum(loss, FLOOR)).astype(np.float32)


def finding(story: Story) -> str:
    """The title of the landscape: what this setup shows, by its numbers."""
    lth, naive, permuted = (story.runs[m].end for m in ("lth", "naive", "permuted"))
    own = f"A with its own: {_number(lth)}"
    if not story.swapped:
        title = f"In one basin, π moves nothing: A's mask takes B to loss {_number(naive)} ({own})"
    elif naive > ALIKE * permuted:
        title = (
            f"A's mask leaves B at loss {_number(naive)}; permuted, it takes B to "
            f"{_number(permuted)} ({own})"
        )
    else:
        title = (
            f"No gain from π here: A's mask takes B to loss {_number(naive)}, permuted to "
            f"{_number(permuted)} ({own})"
        )
    dense = " and ".join(_number(story.runs[name].end) for name in "AB")
    return (
        f"{title}<br><sup>dense, A and B end at {dense}; pruning takes A to "
        f"{_number(story.pruned_loss)}; a dot a step; loss: mean squared error, log scale</sup>"
    )


def _number(loss: float) -> str:
    return f"{loss:.2f}"


def rewinds(shares: pd.DataFrame) -> go.Figure:
    """How many of the pairs a mask works for, against the step that sparse training starts from.

    shares: columns method, rewind_step, pairs, found, as `toy_rewind.shares` gives them.
    """
    figure = go.Figure()
    lay_out(figure, "rewind step k (0 is the init)", "pairs that find the solution, %")
    share = 100 * shares.set_index(["method", "rewind_step"])["found"]
    for method in METHODS:
        figure.add_scatter(
            x=share[method].index,
            y=share[method],
            name=METHOD_NAMES[method],
            mode="lines+markers",
            line=dict(color=COLOURS[method], width=3),
            marker=dict(symbol=SYMBOLS[method], size=11),
        )
    latest = shares["rewind_step"].max()
    naive, permuted = (_went(share[m][0], share[m][latest]) for m in ("naive", "permuted"))
    figure.update_yaxes(range=[0, 103])
    figure.update_layout(
        title=f"k = 0 to {latest}: the permuted mask {permuted}, naive {naive}<br><sup>"
        f"share of {shares['pairs'].max()} random pairs, A and B in different basins, that end "
        f"below a loss of {SOLVED:g}</sup>"
    )
    return figure


def _went(first: float, last: float) -> str:
    verb = "rises" if last > first else "falls" if last < first else "stays"
    return f"{verb} from {first:.0f} to {last:.0f}%"


def widths(paths: pd.DataFrame) -> go.Figure:
    """Loss on the straight way from A to B, unmatched and matched, with a slider for the width.

    paths: columns width, pair, path, alpha, loss, as `toy_widths.compare` gives them.
    """
    figure = go.Figure()
    lay_out(figure, "α: from A (0) to B (1)", "loss: mean squared error")
    sizes, titles = sorted(paths["width"].unique()), []
    for width in sizes:
        rows, left = paths[paths["width"] == width], {}
        for kind in ("unmatched", "matched"):
            name, colour, _ = PATHS[kind]
            curves = rows[rows["path"] == kind].pivot(index="alpha", columns="pair", values="loss")
            alphas = list(curves.index)
            left[kind] = np.mean([barrier(list(curves[pair]), alphas) for pair in curves])
            for pair in curves:
                figure.add_scatter(
                    x=alphas,
                    y=curves[pair],
                    mode="lines",
                    line=dict(color=colour, width=1),
                    opacity=0.4,
                    showlegend=False,
                    hoverinfo="skip",
                )
            figure.add_scatter(
                x=alphas,
                y=curves.mean(axis=1),
                mode="lines+markers",
                name=name,
                line=dict(color=colour, width=3),
                marker_size=8,
            )
        titles.append(
            f"{width} hidden units: a barrier of {left['unmatched']:.2g} as trained, "
            f"{left['matched']:.2g} after matching<br><sup>mean over "
            f"{rows['pair'].nunique()} pairs (thin lines); the scale follows the width</sup>"
        )
    add_slider(figure, [str(width) for width in sizes], titles, len(sizes) - 1, "hidden units: ")
    return figure
