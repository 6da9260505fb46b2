"""The toy landscape under the reader's hands: sliders, and a figure and a table that follow them.

The figure is an ordinary plotly output that is displayed anew, not a widget of its own: so the file
stays small, and a viewer without a kernel shows the figure as it was saved.
"""

from __future__ import annotations

from dataclasses import asdict

import ipywidgets
from IPython.display import display

from rebasin_utils import style, toy, toy_figures
from rebasin_utils.lab import as_html
from rebasin_utils.toy import Setup


def explore(setup: Setup) -> dict[str, ipywidgets.Widget]:
    """Display the sliders, the landscape and the table of its descents.

    Returns:
        The controls by the names of the fields of `Setup`; setting a value redraws, too.
    """
    controls = _controls(setup)
    box = _arranged(controls)
    display(
        {
            "application/vnd.jupyter.widget-view+json": {"model_id": box.model_id},
            "text/plain": "Run the notebook to see its sliders here.",
        },
        raw=True,
    )
    story = toy.tell(setup)
    drawn = toy_figures.landscape(story)
    shown = style.live(drawn) | style.picture(drawn)
    figure = display(shown, raw=True, display_id=True)
    table = display(as_html(story.summary()), display_id=True)

    def redraw(change: dict) -> None:
        story = toy.tell(Setup(**{name: control.value for name, control in controls.items()}))
        figure.update(style.live(toy_figures.landscape(story)), raw=True)
        table.update(as_html(story.summary()))

    for control in controls.values():
        control.observe(redraw, names="value")
    return controls


def _controls(setup: Setup) -> dict[str, ipywidgets.Widget]:
    """One control per field of `Setup`, at its value."""
    values = asdict(setup)
    controls = {
        name: ipywidgets.FloatSlider(
            values[name],
            min=toy.LOW,
            max=toy.HIGH,
            step=0.05,
            description=f"{name[0].upper()}: w{'₁₂'[int(name[1]) - 1]}",
        )
        for name in ("a1", "a2", "b1", "b2")
    }
    controls["prune"] = ipywidgets.Dropdown(
        options=toy.MASKS, value=setup.prune, description="prune"
    )
    controls["lr"] = ipywidgets.FloatSlider(
        setup.lr, min=toy.MIN_LR, max=toy.MAX_LR, step=0.005, readout_format=".3f", description="lr"
    )
    controls["steps"] = ipywidgets.IntSlider(
        setup.steps, min=1, max=toy.MAX_STEPS, description="steps"
    )
    return controls


def _arranged(controls: dict[str, ipywidgets.Widget]) -> ipywidgets.HBox:
    """A column for A, one for B, one for the descent."""
    columns = (("a1", "a2"), ("b1", "b2"), ("prune", "lr", "steps"))
    return ipywidgets.HBox([ipywidgets.VBox([controls[name] for name in c]) for c in columns])
