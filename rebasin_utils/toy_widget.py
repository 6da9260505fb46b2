"""The toy landscape under the reader's hands: sliders, and a figure and a table that follow them.

The figure is a plotly widget, of which only what changes is sent: it follows a slider at once. What
a notebook keeps of it is an ordinary figure with a still picture, for viewers without a kernel.
"""

from __future__ import annotations

from dataclasses import asdict

import ipywidgets
from IPython.display import display
from plotly.graph_objects import FigureWidget

from rebasin_utils import style, toy, toy_figures
from rebasin_utils.lab import as_html
from rebasin_utils.toy import HIGH, LOW, Setup, Story

#: What changes in a trace when a control is moved; the rest is not sent again.
MOVING = {"x", "y", "z", "name", "text", "visible"}
WIDGET = "application/vnd.jupyter.widget-view+json"


def explore(setup: Setup) -> dict[str, ipywidgets.Widget]:
    """Display the sliders, the landscape and the table of its descents.

    Returns:
        The controls by the names of the fields of `Setup`; setting a value redraws, too.
    """
    controls = _controls(setup)
    box = _arranged(controls)
    hint = "Run the notebook: its sliders appear here."
    display({WIDGET: {"model_id": box.model_id}, "text/plain": hint}, raw=True)
    story = toy.tell(setup)
    drawn = toy_figures.landscape(story)
    figure = FigureWidget(drawn)
    shown = {WIDGET: {"model_id": figure.model_id}}
    display(shown | style.live(drawn) | style.picture(drawn), raw=True)
    table = display(as_html(story.summary()), display_id=True)

    def redraw(change: dict | None = None) -> None:
        story = toy.tell(Setup(**{name: control.value for name, control in controls.items()}))
        _redraw(figure, story)
        table.update(as_html(story.summary()))

    for control in controls.values():
        control.observe(redraw, names="value")
    return controls


def _redraw(figure: FigureWidget, story: Story) -> None:
    """Put the story's descents in the place of those on display."""
    moving = toy_figures.descents(story)
    with figure.batch_update():
        for old, new in zip(figure.data[-len(moving) :], moving, strict=True):
            for name in MOVING & set(new):
                old[name] = new[name]
        figure.layout.title.text = toy_figures.finding(story)


def _controls(setup: Setup) -> dict[str, ipywidgets.Widget]:
    """One control per field of `Setup`, at its value."""
    values = asdict(setup)
    controls = {
        name: ipywidgets.FloatSlider(
            values[name],
            min=LOW,
            max=HIGH,
            step=0.05,
            description=f"{name[0].upper()}: w{'₁₂'[int(name[1]) - 1]}",
        )
        for name in ("a1", "a2", "b1", "b2")
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
