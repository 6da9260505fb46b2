"""One bar for a grid where somebody watches, and whole lines in a log."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import nbformat
import pytest

from rebasin_utils.running.progress import Progress

WORK = """
from rebasin_utils.running.progress import Progress

with Progress(runs=4, epochs=20, images=200_000, every=0) as progress:
    progress.stage("sparse")
    for _ in range(4):
        progress.update(5, runs=1)
"""

#: Executes a notebook as a Jupyter server does, from a process of another name than pytest's.
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient

nbformat.write(NotebookClient(nbformat.read(sys.argv[1], 4)).execute(), sys.argv[1])
"""


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    kernel = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(WORK)], metadata=kernel)


def check_lines(lines: list[str]) -> None:
    assert len(lines) == 5  # one an update, one at the end
    assert lines[1].startswith("sparse: 2 of 4 runs, 10 of 20 epochs (50%), ")
    assert lines[1].endswith(" left")
    assert all("images/s" in line for line in lines)
    assert lines[-1].startswith("sparse: 4 of 4 runs, 20 of 20 epochs (100%), ")
    assert lines[-1].endswith("00:00 left")


def test_a_file_gets_whole_lines():
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)
    assert "\r" not in done.stderr
    check_lines(done.stderr.splitlines())
    assert not done.stdout


def test_a_terminal_gets_one_bar():
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 150))
    with subprocess.Popen([sys.executable, "-c", WORK], stderr=theirs) as process:
        os.close(theirs)
        written = b""
        try:
            while part := os.read(ours, 4096):
                written += part
        except OSError:  # how a terminal says that its other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0
    *before, last = written.decode().strip().split("\r")
    assert len(before) >= 2  # the same line, drawn anew
    for part in ("sparse: 100%", "20/20", "4 of 4 runs", "images/s", "<00:00"):
        assert part in last


def test_a_papermill_log_gets_whole_lines(notebook, tmp_path: Path):
    nbformat.write(notebook, tmp_path / "in.ipynb")
    command = ["-m", "papermill", "in.ipynb", "out.ipynb", "--log-output", "--no-progress-bar"]
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("sparse: ")]
    check_lines(lines)
    (cell,) = (c for c in nbformat.read(tmp_path / "out.ipynb", 4).cells if c.source == WORK)
    assert {output.output_type for output in cell.outputs} == {"stream"}


def test_nbconvert_gets_whole_lines(notebook, tmp_path: Path):
    nbformat.write(notebook, tmp_path / "in.ipynb")
    command = ["-m", "nbconvert", "--execute", "--to", "notebook", "--inplace", "in.ipynb"]
    subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, check=True)
    (cell,) = nbformat.read(tmp_path / "in.ipynb", 4).cells
    check_lines("".join(output["text"] for output in cell.outputs).splitlines())


def test_a_notebook_gets_one_bar(notebook, tmp_path: Path):
    file = tmp_path / "in.ipynb"
    nbformat.write(notebook, file)
    subprocess.run([sys.executable, "-c", EXECUTE, file], capture_output=True, check=True)
    done = nbformat.read(file, 4)
    (output,) = done.cells[0].outputs
    assert "application/vnd.jupyter.widget-view+json" in output["data"]
    (saved,) = done.metadata["widgets"].values()
    shown = " ".join(str(model["state"].get("value")) for model in saved["state"].values())
    for part in ("sparse: 100%", "20/20", "4 of 4 runs", "images/s"):
        assert part in shown.replace("\u2007", " ")


def test_quiet_is_quiet(capsys):
    with Progress(runs=1, epochs=2, images=10, quiet=True, every=0) as progress:
        progress.update(2, runs=1)
    assert capsys.readouterr() == ("", "")


def test_a_line_is_due_only_now_and_then(capsys):
    with Progress(runs=1, epochs=2, images=10, every=3600) as progress:
        progress.update(1)
        progress.update(1, runs=1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("1 of 1 runs, 2 of 2 epochs (100%)")
