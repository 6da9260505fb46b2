"""A still picture of a plotly figure, drawn by matplotlib.

Plotly needs a browser to make an image; a bare machine has none, and a plain viewer shows no
JavaScript. This draws the same traces, as they first appear: lines, markers, error bars, bars, heat
maps, contours, and one scene with a surface, in the figure's own panels, colours and titles.
"""

from __future__ import annotations

import io
import math
import re

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.axes3d import Axes3D
from PIL import Image

_MARKERS = {
    "circle": "o",
    "diamond": "D",
    "square": "s",
    "triangle-up": "^",
    "triangle-down": "v",
    "star": "*",
    "cross": "P",
}
_IN_A_ROW = 3  # entries of a legend
_DASHES = {None: "-", "solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}


def png(figure: go.Figure, dpi: int = 110) -> bytes:
    """The figure as a PNG, in its initial state (of sliders and menus)."""
    drawn, small = io.BytesIO(), io.BytesIO()
    still = draw(figure)
    still.savefig(drawn, format="rgba", dpi=dpi)
    size = [int(side) for side in still.get_size_inches() * dpi]
    image = Image.frombytes("RGBA", size, drawn.getvalue()).convert("RGB")
    image.quantize(256).save(small, format="png", optimize=True)
    return small.getvalue()


def draw(figure: go.Figure) -> Figure:
    """The figure as a matplotlib `Figure`.

    Raises:
        TypeError: when a visible trace is of a kind that is not drawn here.
    """
    layout = figure.layout
    width, height = (layout.width or 860) / 100, (layout.height or 480) / 100
    still = Figure(figsize=(width, height))
    named = {t.name for t in figure.data if t.name and t.showlegend is not False}
    still.foot = 0.13 + 0.045 * math.ceil(len(named) / _IN_A_ROW)
    titles = [note.text for note in layout.annotations if note.xref == "paper" and note.text]
    still.head = 0.83 - 0.04 * max((text.count("<br>") for text in titles), default=0)
    panels: dict[str, Axes] = {}
    for trace in figure.data:
        if trace.visible in (False, "legendonly"):
            continue
        if trace.type not in _DRAW | _DRAW_SOLID:
            raise TypeError(f"a {trace.type} trace cannot be drawn as a still picture")
        if trace.type in _DRAW_SOLID:
            if "scene" not in panels:
                panels["scene"] = _scene(still, layout)
            _DRAW_SOLID[trace.type](panels["scene"], trace, layout)
            continue
        name = trace.yaxis or "y"
        if name not in panels:
            panels[name] = _panel(still, layout, panels, name, trace.xaxis or "x")
        _DRAW[trace.type](panels[name], trace, layout)
    for shape in layout.shapes:
        _line(panels[shape.yref.split(" ")[0]] if shape.yref != "paper" else _first(panels), shape)
    shown = {
        label: handle
        for axes in panels.values()
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if shown and layout.showlegend is not False:  # below, where no data are
        place = dict(loc="lower center", ncols=_IN_A_ROW)
        still.legend(shown.values(), shown.keys(), frameon=False, fontsize=8.5, **place)
    title, _, below = _plain(layout.title.text or "").partition("\n")
    heading = still.text(0.02, 0.975, title, fontsize=12, va="top", weight="bold")
    wide = heading.get_window_extent(FigureCanvasAgg(still).get_renderer()).width
    heading.set_fontsize(12 * min(1, 0.96 * still.bbox.width / max(wide, 1)))
    still.text(0.02, 0.915, below, fontsize=9, va="top", color="#444444")
    return still


def _panel(
    still: Figure, layout: go.Layout, panels: dict[str, Axes], y_name: str, x_name: str
) -> Axes:
    """Axes where plotly has the panel, with its titles, ranges and scales."""
    x, y = layout[f"xaxis{x_name[1:]}"], layout[f"yaxis{y_name[1:]}"]
    left, right = x.domain or (0, 1)
    bottom, top = y.domain or (0, 1)
    shared = panels.get(y.matches) if y.matches else None
    foot, high = still.foot, still.head - still.foot
    box = [
        0.09 + 0.88 * left,
        foot + high * bottom,
        0.88 * (right - left) - 0.02,
        high * (top - bottom),
    ]
    axes = still.add_axes(box, sharey=shared)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(_plain(x.title.text or ""))
    axes.set_ylabel(_plain(y.title.text or ""))
    axes.tick_params(labelleft=y.showticklabels is not False)
    for axis, set_scale, set_limits in (
        (x, axes.set_xscale, axes.set_xlim),
        (y, axes.set_yscale, axes.set_ylim),
    ):
        if axis.type == "log":
            set_scale("log")
        if axis.range:
            set_limits(*(10 ** np.array(axis.range) if axis.type == "log" else axis.range))
    if x.autorange == "reversed":
        axes.invert_xaxis()
    if y.autorange == "reversed":
        axes.invert_yaxis()
    if x.tickvals is not None:
        axes.set_xticks(x.tickvals, x.ticktext)
        axes.minorticks_off()
    for note in layout.annotations:
        if note.xref == "paper" and note.x is not None and left <= note.x <= right and note.text:
            axes.set_title(_plain(note.text), fontsize=10)
    return axes


def _scene(still: Figure, layout: go.Layout) -> Axes3D:
    """The panel of a surface, seen from where plotly's camera is."""
    scene = layout.scene
    (left, right), (bottom, top) = scene.domain.x or (0, 1), scene.domain.y or (0, 1)
    box = [0.96 * left, 0.13 + 0.75 * bottom, 0.96 * (right - left), 0.75 * (top - bottom)]
    axes = still.add_axes(box, projection="3d", computed_zorder=False)
    eye = scene.camera.eye
    x, y, z = eye.x or 1.25, eye.y or 1.25, eye.z or 1.25
    height, turn = math.atan2(z, math.hypot(x, y)), math.atan2(y, x)
    axes.view_init(elev=math.degrees(height), azim=math.degrees(turn))
    for axis, name in ((scene.xaxis, "x"), (scene.yaxis, "y"), (scene.zaxis, "z")):
        axes.set(**{f"{name}label": _plain(axis.title.text or "")})
        if axis.tickvals is not None:
            axes.set(**{f"{name}ticks": axis.tickvals, f"{name}ticklabels": axis.ticktext})
    return axes


def _surface(axes: Axes3D, trace: go.Surface, layout: go.Layout) -> None:
    x, y = np.meshgrid(trace.x, trace.y)
    axes.plot_surface(
        x, y, np.asarray(trace.z, dtype=float), cmap=_colours(trace, layout), rcount=60, ccount=60
    )


def _scatter3d(axes: Axes3D, trace: go.Scatter3d, layout: go.Layout) -> None:
    axes.plot(trace.x, trace.y, trace.z, color=trace.line.color, linewidth=2.2, zorder=5)


def _scatter(axes: Axes, trace: go.Scatter, layout: go.Layout) -> None:
    mode = trace.mode or "lines"
    style = {
        "label": None if trace.showlegend is False else _plain(trace.name or "") or None,
        "color": trace.line.color or trace.marker.color,
        "linestyle": _DASHES[trace.line.dash] if "lines" in mode else "none",
        "marker": _MARKERS.get(trace.marker.symbol or "circle", "o") if "markers" in mode else None,
        "markersize": (trace.marker.size or 7) * 0.6 if np.isscalar(trace.marker.size or 7) else 4,
        "markeredgecolor": trace.marker.line.color,
        "linewidth": trace.line.width or 1.8,
        "alpha": trace.opacity,
    }
    if not isinstance(style["color"], str | None):
        style["color"] = None
    bars = {
        f"{axis}err": _extent(error)
        for axis, error in (("x", trace.error_x), ("y", trace.error_y))
        if error.array is not None
    }
    if bars:
        axes.errorbar(trace.x, trace.y, **bars, capsize=3, **style)
    else:
        axes.plot(trace.x, trace.y, **style)
    if not np.isscalar(trace.marker.size or 7):
        areas = (0.6 * np.asarray(trace.marker.size)) ** 2
        axes.scatter(trace.x, trace.y, s=areas, color=style["color"], marker=style["marker"])
    if len(trace.x) > 5 and isinstance(trace.x[0], str):  # names of layers, too long side by side
        axes.tick_params("x", labelrotation=20, labelsize=7)
        box = axes.get_position()
        foot = axes.figure.foot + 0.07
        axes.set_position([box.x0, foot, box.width, box.y1 - foot])
    if "text" in mode and trace.text is not None:
        for x, y, text in zip(trace.x, trace.y, np.atleast_1d(trace.text), strict=False):
            axes.annotate(
                _plain(str(text)), (x, y), fontsize=9, xytext=(5, 5), textcoords="offset points"
            )


def _bar(axes: Axes, trace: go.Bar, layout: go.Layout) -> None:
    style = {"label": trace.name, "color": trace.marker.color, "alpha": trace.opacity}
    siblings = getattr(axes, "bars_drawn", 0)
    axes.bars_drawn = siblings + 1
    if trace.orientation == "h":
        axes.barh(trace.y, trace.x, **style)
        return
    names = list(dict.fromkeys([t.get_text() for t in axes.get_xticklabels()] if siblings else []))
    names = names if names and set(map(str, trace.x)) <= set(names) else list(map(str, trace.x))
    places = np.arange(len(trace.x)) + (
        0 if layout.barmode in ("stack", "overlay") else 0.27 * siblings
    )
    error = None if trace.error_y.array is None else _extent(trace.error_y)
    axes.bar(places, trace.y, width=0.25 if layout.barmode == "group" else 0.8, yerr=error, **style)
    shift = 0.27 * siblings / 2 if layout.barmode == "group" else 0
    axes.set_xticks(
        np.arange(len(names)) + shift, names, fontsize=8, rotation=20 if len(names) > 5 else 0
    )


def _heatmap(axes: Axes, trace: go.Heatmap, layout: go.Layout) -> None:
    z = np.asarray(trace.z, dtype=float)
    axes.imshow(
        z,
        aspect="auto",
        interpolation="nearest",
        cmap=_colours(trace, layout),
        vmin=trace.zmin,
        vmax=trace.zmax,
    )


def _contour(axes: Axes, trace: go.Contour, layout: go.Layout) -> None:
    z = np.asarray(trace.z, dtype=float)
    x = np.arange(z.shape[1]) if trace.x is None else trace.x
    y = np.arange(z.shape[0]) if trace.y is None else trace.y
    drawn = axes.contourf(x, y, z, levels=20, cmap=_colours(trace, layout))
    bar = axes.figure.colorbar(drawn, ax=axes, label=_plain(trace.colorbar.title.text or ""))
    if trace.colorbar.tickvals is not None:
        bar.set_ticks(trace.colorbar.tickvals, labels=trace.colorbar.ticktext)


_DRAW = {"scatter": _scatter, "bar": _bar, "heatmap": _heatmap, "contour": _contour}
_DRAW_SOLID = {"surface": _surface, "scatter3d": _scatter3d}


def _extent(error: go.scatter.ErrorY) -> np.ndarray:
    plus = np.nan_to_num(np.asarray(error.array, dtype=float))
    minus = plus if error.arrayminus is None else np.asarray(error.arrayminus, dtype=float)
    return np.stack([minus, plus])


def _line(axes: Axes, shape: go.layout.Shape) -> None:
    style = {
        "color": shape.line.color,
        "linestyle": _DASHES[shape.line.dash],
        "linewidth": shape.line.width or 1.4,
        "zorder": 0,
    }
    if shape.y0 == shape.y1:
        axes.axhline(shape.y0, **style)
    elif shape.x0 == shape.x1:
        axes.axvline(shape.x0, **style)


def _colours(trace: go.Heatmap | go.Contour, layout: go.Layout) -> LinearSegmentedColormap:
    scale = trace.colorscale
    stops = (
        [(float(at), colour) for at, colour in scale] if scale else [(0, "white"), (1, "#0072B2")]
    )
    return LinearSegmentedColormap.from_list("plotly", stops)


def _first(panels: dict[str, Axes]) -> Axes:
    return next(iter(panels.values()))


def _plain(text: str) -> str:
    return re.sub(r"<[^>]+>", "", re.sub(r"<br\s*/?>", "\n", text))
