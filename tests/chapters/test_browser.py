"""Notebooks in a real browser: JupyterLab in headless Chromium, every cell run, a slider moved.

Screenshots go to pytest's temporary folder, or to the one that `REBASIN_SCREENSHOTS` names.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import nbformat
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from rebasin_utils.chapters import toy_widget
from rebasin_utils.running import notebooks

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on the PATH: install one, e.g. apt-get install chromium"
)

SETTINGS = {
    # Cells out of sight would not be in the page, and a question about news would cover it.
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
#: Arguments without which Chromium does not start for root, or asks the network for things.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--disable-quic",
             "--no-first-run", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--no-proxy-server"]  # fmt: skip
SECONDS = 1000  # playwright counts in milliseconds

CONNECTED = """() => {
  const kernel = window.jupyterapp?.shell.currentWidget?.context?.sessionContext?.session?.kernel;
  return kernel?.status === 'idle' && kernel?.connectionStatus === 'connected';
}"""
CODE_CELLS = """() => {
  const cells = [...window.jupyterapp.shell.currentWidget.content.model.cells];
  return cells.filter(c => c.type === 'code').map(c => c.toJSON());
}"""
#: Everything that a plotly figure draws, and its title.
DRAWN = """plot => JSON.stringify([plot.layout.title?.text, plot.data.map(trace => [
  trace.name, trace.visible, Array.from(trace.x), Array.from(trace.y)])])"""

#: Once the plot is drawn again, `window.redrawn` will be the milliseconds from now until then.
AWAIT_REDRAW = """plot => {
  const start = performance.now();
  window.redrawn = null;
  plot.once('plotly_afterplot', () => { window.redrawn = performance.now() - start; });
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab on copies of the notebooks, with a %s for a file's name."""
    home = tmp_path_factory.mktemp("lab")
    for name, parameters in (
        ("01", {"pairs": 20}),
        ("04", {"preset": "smoke", "sparsity": 0.8, "store": str(home / "store")}),
    ):
        copy_with(name, parameters, home / "notebooks")
    for name, values in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
               f"--port={port}", f"--IdentityProvider.token={token}",
               f"--ServerApp.root_dir={home / 'notebooks'}",
               "--LabApp.expose_app_in_browser=True"]  # fmt: skip
    private = {
        "JUPYTER_CONFIG_DIR": home / "config",
        "JUPYTER_DATA_DIR": home / "data",
        "JUPYTER_RUNTIME_DIR": home / "runtime",
        "JUPYTERLAB_SETTINGS_DIR": home / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": home / "workspaces",
    }
    environment = os.environ | {name: str(folder) for name, folder in private.items()}
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/api/status?token={token}", server, home / "log")
        yield f"http://127.0.0.1:{port}/lab/tree/%s?token={token}&reset"
    finally:
        server.terminate()
        server.wait(timeout=30)


def copy_with(name: str, parameters: dict[str, object], folder: Path) -> None:
    """A copy of the notebook whose name begins so, with some of its parameters changed."""
    (notebook,) = notebooks.find([name])
    notebooks.check_parameters(notebook, parameters)
    content = nbformat.read(notebook.path, as_version=4)
    (cell,) = [c for c in content.cells if "parameters" in c.metadata.get("tags", [])]
    for parameter, value in parameters.items():
        line = rf"^({parameter}: [^=]+= ).*$"
        cell.source = re.sub(line, lambda m, v=value: m[1] + repr(v), cell.source, flags=re.M)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    folder.mkdir(exist_ok=True)
    nbformat.write(content, folder / notebook.path.name)


def wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    direct = build_opener(ProxyHandler({}))  # a proxy of the environment does not know this machine
    for _ in range(900):
        assert server.poll() is None, log.read_text()
        try:
            direct.open(address).close()
            return
        except URLError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab does not answer: {log.read_text()}")


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(180 * SECONDS)
    yield page
    page.close()


def run_all(page: Page, address: str, name: str) -> None:
    """Open a notebook, run its cells, and see that all have run and none has failed."""
    page.goto(address % f"{name}.ipynb")
    page.wait_for_function(CONNECTED)
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    cells = page.evaluate(CODE_CELLS)
    errors = [o for cell in cells for o in cell["outputs"] if o["output_type"] == "error"]
    assert not errors
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))


def shoot(page: Page, folder: Path, name: str) -> None:
    page.wait_for_timeout(1 * SECONDS)  # until scrolling and fading have ended
    folder = Path(os.environ.get("REBASIN_SCREENSHOTS", folder))
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png")


def test_moving_an_init_in_notebook_01_moves_its_descent(page: Page, lab: str, tmp_path: Path):
    run_all(page, lab, "01-toy-landscape")
    plot = page.locator(".js-plotly-plot").first
    slider = page.locator(".widget-slider", has_text="B: w₁")
    slider.evaluate("slider => slider.scrollIntoView()")
    shoot(page, tmp_path, "01")
    before = plot.evaluate(DRAWN)
    slider.locator(".noUi-handle").focus()
    seconds = []
    for _ in range(26):
        plot.evaluate(AWAIT_REDRAW)
        page.keyboard.press("ArrowRight")
        seconds.append(page.wait_for_function("() => window.redrawn").json_value() / SECONDS)
    print(
        f"from a slider's move to the redrawn contours: {median(seconds):.2f} s, the median of 26 "
        f"one upon the other; the slowest {max(seconds):.2f} s"
    )
    surface = page.locator(".js-plotly-plot").nth(1)
    seconds = []
    for _ in range(5):
        page.wait_for_timeout(1 * SECONDS)
        surface.evaluate(AWAIT_REDRAW)
        page.keyboard.press("ArrowLeft")
        seconds.append(page.wait_for_function("() => window.redrawn").json_value() / SECONDS)
    print(f"… to the surface, its pause of {toy_widget.REST} s included: {median(seconds):.2f} s")
    init = float(slider.locator(".widget-readout").inner_text())
    assert init == pytest.approx(0.15)
    page.wait_for_function(
        """init => document.querySelector('.js-plotly-plot').data.some(
             trace => trace.text?.[0] === 'B' && Math.abs(trace.x[0] - init) < 1e-9)""",
        arg=init,
    )
    assert plot.evaluate(DRAWN) != before
    shoot(page, tmp_path, "01-moved")
    at = page.locator(".shapelayer path[data-index='0']").bounding_box()
    drag(page, at["x"] + at["width"] / 2, at["y"] + at["height"] / 2, by=40)
    slider = page.locator(".widget-slider", has_text="A: w₁").element_handle()
    page.wait_for_function("slider => Number(slider.innerText.match(/\\S+$/)) > 1", arg=slider)
    shoot(page, tmp_path, "01-dragged")


def drag(page: Page, x: float, y: float, by: float) -> None:
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by, y - by, steps=5)
    page.mouse.up()


def test_moving_the_sparsity_in_notebook_04_shows_other_runs(page: Page, lab: str, tmp_path: Path):
    run_all(page, lab, "04-naive-permuted-lth")
    # JupyterLab shows the still picture until the mouse enters it.
    page.locator(".jp-RenderedPlotly .plot-img").first.dispatch_event("mouseenter")
    plot = page.locator(".js-plotly-plot").first
    plot.evaluate("plot => plot.scrollIntoView()")
    shoot(page, tmp_path, "04")
    before = plot.evaluate(DRAWN)
    at = plot.locator(".slider-rail-touch-rect").bounding_box()
    other = 0 if "At 80% sparsity" in before else 1
    page.mouse.click(at["x"] + 2 + other * (at["width"] - 4), at["y"] + at["height"] / 2)
    page.wait_for_function(
        "before => !document.querySelector('.js-plotly-plot').layout.title.text.startsWith(before)",
        arg=json.loads(before)[0].partition(",")[0],
    )
    assert plot.evaluate(DRAWN) != before
    shoot(page, tmp_path, "04-moved")
