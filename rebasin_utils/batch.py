"""Notebooks executed in a batch: one after the other or some at a time, and never twice the same.

papermill executes them, on the runner that computes studies. An execution that succeeded is kept
with the digest of what it depends on: the notebook's cells, the parameters, this package's code.
A batch that was stopped, or in which notebooks failed, goes on where it was.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import Context
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import papermill
import torch
from papermill.exceptions import PapermillExecutionError
from plotly.offline import get_plotlyjs

from rebasin_utils import cluster as clusters
from rebasin_utils.dag import Outcome, Report, Task, execute
from rebasin_utils.errors import InputError, RunError
from rebasin_utils.notebooks import Notebook, check_parameters, export_html
from rebasin_utils.store import replace_synced


@dataclass(frozen=True)
class Execution:
    """A notebook with the parameters that it gets; name: of its page and executed copy."""

    notebook: Notebook
    values: dict[str, Any]
    name: str

    @property
    def digest(self) -> str:
        """Of everything that the executed notebook depends on, but the study's results."""
        content = nbformat.read(self.notebook.path, as_version=4)
        cells = [(cell.cell_type, cell.source) for cell in content.cells]
        text = json.dumps([cells, self.values, _code()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@cache
def _code() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def executions(
    notebooks: Sequence[Notebook],
    values: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]] | None = None,
) -> list[Execution]:
    """One execution of every notebook for every combination of the grid's values.

    Each notebook gets the parameters that it has.

    Raises:
        InputError: when no notebook has a parameter, or a value is not allowed; nothing has begun.
    """
    grid = grid or {}
    for name in (*values, *grid):
        if name in values and name in grid:
            raise InputError(f"{name}: give it one value or a grid, not both")
        if not any(name in notebook.parameters for notebook in notebooks):
            value = values.get(name, grid.get(name))
            check_parameters(notebooks[0], {name: value})
    found: dict[str, Execution] = {}
    for notebook in notebooks:
        axes = [[(n, v) for v in column] for n, column in grid.items() if n in notebook.parameters]
        for point in product(*axes):
            mine = {n: v for n, v in values.items() if n in notebook.parameters} | dict(point)
            check_parameters(notebook, mine)
            name = notebook.name
            if grid:
                text = json.dumps(mine, sort_keys=True)
                name += "-" + hashlib.sha256(text.encode()).hexdigest()[:8]
            found[name] = Execution(notebook, mine, name)
    return list(found.values())


def run_batch(
    batch: Sequence[Execution],
    folder: Path,
    at_once: int = 2,
    cluster: str | Path | None = "local",
) -> pd.DataFrame:
    """Execute what was not executed before, and export each notebook as a page.

    Args:
        folder: gets `<name>.ipynb`, `<name>.html`, `plotly.min.js`, `index.html`.
        at_once: notebooks that run at the same time on this machine; they share its cores.
        cluster: as for `runner.run`; "local" and None execute on this machine.

    Returns:
        One row per execution: notebook, parameters, state (executed, cached or failed), seconds,
        page and problem.
    """
    where = None if cluster in ("local", None) else clusters.find(cluster)
    folder.mkdir(parents=True, exist_ok=True)
    replace_synced(folder / "plotly.min.js", get_plotlyjs().encode())
    due = [execution for execution in batch if not _is_there(execution, folder)]
    at_once = min(at_once, len(due))
    cores = max(len(os.sched_getaffinity(0)) // max(at_once, 1), 1)
    tasks = [Task(f"notebook-{e.name}", _execute, (e, folder.absolute())) for e in due]
    with ExitStack() as open_now:
        client = None
        if where is not None and due:
            device, scratch = torch.device("cpu"), folder.absolute() / ".cluster"
            client = open_now.enter_context(clusters.connected(where, device, scratch))
        elif where is None:
            open_now.enter_context(_workers_of_a_kernel(cores))
            if at_once > 1:
                client = open_now.enter_context(clusters.threads(at_once))
        outcomes = {o.task: o for o in execute(tasks, client, lambda event: None)}
    table = pd.DataFrame([_row(e, outcomes.get(f"notebook-{e.name}")) for e in batch])
    _write_index(batch, table, folder)
    return table


def refuse_failures(table: pd.DataFrame, folder: Path) -> None:
    """Raise the first failure of a batch, as the user's mistake where it was one.

    Raises:
        InputError, RunError: one sentence, and the page to look at.
    """
    failed = table[table["state"] == "failed"]
    for row in failed.itertuples():
        kind = InputError if row.problem.startswith("InputError") else RunError
        raise kind(f"{row.notebook} failed: {row.problem}; see {folder / row.page}")


def _is_there(execution: Execution, folder: Path) -> bool:
    """Whether the same was executed before, to its end."""
    copy = folder / f"{execution.name}.ipynb"
    if not copy.is_file() or not copy.with_suffix(".html").is_file():
        return False
    try:
        metadata = json.loads(copy.read_bytes())["metadata"]
    except (ValueError, LookupError):
        return False
    return metadata.get("rebasin", {}).get("digest") == execution.digest


@contextmanager
def _workers_of_a_kernel(count: int) -> Iterator[None]:
    """The kernels that are started meanwhile run studies with so many workers each."""
    name = "REBASIN_WORKERS"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(count)
    try:
        yield
    finally:
        del os.environ[name]


def _execute(execution: Execution, folder: Path, report: Report) -> float:
    """Execute one notebook and export its page, whether it fails or not; returns its seconds."""
    begin, notebook, problem = time.monotonic(), execution.notebook, None
    running = folder / f".running-{execution.name}.ipynb"
    try:
        Context().run(  # an empty one: Dask's threads share theirs, and an event loop with it
            papermill.execute_notebook,
            notebook.path,
            running,
            execution.values,
            cwd=notebook.path.parent,
            kernel_name="python3",
            progress_bar=False,
        )
    except PapermillExecutionError as raised:
        problem = f"{raised.ename}: {raised.evalue}"
    content = nbformat.read(running, as_version=4)
    content.metadata.pop("widgets", None)  # megabytes, and dead without the kernel
    if problem is None:
        content.metadata["rebasin"] = {"digest": execution.digest}
    page = export_html(nbformat.from_dict(content), notebook.question)
    replace_synced(folder / f"{execution.name}.html", page.encode())
    replace_synced(folder / f"{execution.name}.ipynb", nbformat.writes(content).encode())
    running.unlink()
    if problem is not None:
        raise RunError(problem)
    return time.monotonic() - begin


def _row(execution: Execution, outcome: Outcome | None) -> dict:
    """outcome: None for what was there."""
    state = "cached" if outcome is None else {"done": "executed"}.get(outcome.state, "failed")
    return {
        "notebook": execution.notebook.name,
        "parameters": " ".join(f"{n}={v}" for n, v in execution.values.items()),
        "state": state,
        "seconds": outcome.result if outcome and outcome.state == "done" else float("nan"),
        "page": f"{execution.name}.html",
        "problem": outcome.why if outcome else "",
    }


def _write_index(batch: Sequence[Execution], table: pd.DataFrame, folder: Path) -> None:
    rows = "\n".join(
        f'<tr><td><a href="{row.page}">{row.notebook}</a></td>'
        f"<td>{html.escape(execution.notebook.question)}</td><td>{html.escape(row.parameters)}</td>"
        f"<td>{html.escape(row.problem) or row.state}</td></tr>"
        for execution, row in zip(batch, table.itertuples(), strict=True)
    )
    page = (
        "<!doctype html><meta charset=utf-8><title>rebasin</title><style>body{font:16px/1.5 "
        "sans-serif;max-width:70em;margin:3em auto}td{padding:.3em 1em .3em 0}</style>"
        f"<h1>rebasin: the notebooks as executed</h1><table>\n{rows}\n</table>\n"
    )
    replace_synced(folder / "index.html", page.encode())
