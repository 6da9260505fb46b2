"""The toy landscape under the reader's hands: sliders and rings to drag, figures that follow them.

What a notebook keeps of them is an ordinary figure with a still picture, for viewers without a
kernel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict

import ipywidgets
from IPython.display import display
from plotly.graph_objects import FigureWidget
from plotly.graph_objs import Layout

from rebasin_utils.chapters import style
from rebasin_utils.chapters import toy as figures
from rebasin_utils.chapters.lab import as_html
from rebasin_utils.landscape import toy
from rebasin_utils.landscape.toy import HIGH, LOW, Setup, Story

#: What changes in a trace when a control is moved; the rest is not sent again.
MOVING = {"x", "y", "z", "name", "text", "customdata", "visible"}
WIDGET = "application/vnd.jupyter.widget-view+json"
INITS = ("a1", "a2", "b1", "b2")
STEP = 0.05  # of an init's slider

#: Seconds without a move after which the surface and the table follow: without a graphics card the
#: surface takes as long to draw as the contours, and these should wait for neither.
REST = 0.3


def explore(setup: Setup) -> dict[str, ipywidgets.Widget]:
    """Display the sliders, the landscape and the table of its descents.

    Returns:
        The controls by the names of the fields of `Setup`; setting a value redraws, too.
    """
    return _Explorer(setup).controls


class _Explorer:
    """The controls, and what is drawn at their values."""

    def __init__(self, setup: Setup) -> None:
        self.controls = _controls(setup)
        self.story = toy.tell(setup)
        self.above = FigureWidget(figures.above(self.story))
        self.above.layout.shapes = figures.handles(setup)
        self.above._config = self.above._config | {"edits": {"shapePosition": True}}
        self.surface = FigureWidget(figures.surface(self.story))
        self.surface._config = self.surface._config | {"plotGlPixelRatio": 1}  # 2 is slow
        self.title = ipywidgets.HTML(_as_title(self.story))
        self._display()
        self._later: asyncio.TimerHandle | None = None
        self._listens = True
        self.above.layout.on_change(self._dropped, "shapes")
        for control in self.controls.values():
            control.observe(self._redraw, names="value")

    def _display(self) -> None:
        controls = _arranged(self.controls)
        hint = "Run the notebook: its sliders appear here."
        display({WIDGET: {"model_id": controls.model_id}, "text/plain": hint}, raw=True)
        box = ipywidgets.VBox([self.title, ipywidgets.HBox([self.above, self.surface])])
        figure = figures.landscape(self.story)
        shown = {WIDGET: {"model_id": box.model_id}}
        display(shown | style.live(figure) | style.picture(figure), raw=True)
        self.table = display(as_html(self.story.summary()), display_id=True)

    def _redraw(self, change: dict | None = None) -> None:
        """Tell the story anew from the controls' values and show it."""
        if not self._listens:
            return
        self.story = toy.tell(Setup(**{name: c.value for name, c in self.controls.items()}))
        self._listens = False  # to the rings, which are moved here
        with self.above.batch_update():
            _replace(self.above, figures.descents(self.story))
            self.above.layout.shapes = figures.handles(self.story.setup)
        self._listens = True
        self.title.value = _as_title(self.story)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # outside of a notebook
            self._redraw_rest()
            return
        if self._later:
            self._later.cancel()
        self._later = loop.call_later(REST, self._redraw_rest)

    def _redraw_rest(self) -> None:
        self.table.update(as_html(self.story.summary()))
        with self.surface.batch_update():
            _replace(self.surface, figures.slopes(self.story))

    def _dropped(self, layout: Layout, rings: Sequence[Layout.Shape]) -> None:
        """A ring was dragged: bring the sliders to where it is, and draw once."""
        if not self._listens:
            return
        where = [at for ring in rings for at in (ring.xanchor, ring.yanchor)]
        self._listens = False
        for name, at in zip(INITS, where, strict=True):
            self.controls[name].value = min(max(STEP * round(at / STEP), LOW), HIGH)
        self._listens = True
        self._redraw()


def _replace(figure: FigureWidget, moving: list) -> None:
    """Put these traces in the place of those at the figure's end."""
    for old, new in zip(figure.data[-len(moving) :], moving, strict=True):
        for name in MOVING & set(new):
            old[name] = new[name]


def _as_title(story: Story) -> str:
    finding, _, details = figures.finding(story).partition("<br>")
    details = details.removeprefix("<sup>").removesuffix("</sup>")
    return f"<b style='font-size: 18px'>{finding}</b><br><span>{details}</span>"


def _controls(setup: Setup) -> dict[str, ipywidgets.Widget]:
    """One control per field of `Setup`, at its value."""
    values = asdict(setup)
    controls = {
        name: ipywidgets.FloatSlider(
            values[name],
            min=LOW,
            max=HIGH,
            step=STEP,
            description=f"{name[0].upper()}: w{'₁₂'[int(name[1]) - 1]}",
        )
        for name in INITS
    }
    controls["prune"] = ipywidgets.Dropdown(
        options=toy.MASKS, value=setup.prune, description="prune"
    )
    controls["lr"] = ipywidgets.FloatSlider(
        setup.lr,
        min=toy.MIN_LR,
        max=toy.MAX_LR,
        step=0.005,
        readout_format=".3f",
        description="lr",
    )
    controls["steps"] = ipywidgets.IntSlider(
        setup.steps, min=1, max=toy.MAX_STEPS, description="steps"
    )
    return controls


def _arranged(controls: dict[str, ipywidgets.Widget]) -> ipywidgets.HBox:
    """A column for A, one for B, one for the descent."""
    columns = (("a1", "a2"), ("b1", "b2"), ("prune", "lr", "steps"))
    return ipywidgets.HBox([ipywidgets.VBox([controls[name] for name in c]) for c in columns])
