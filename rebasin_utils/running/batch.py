"""Notebooks executed in a batch: one after the other or some at a time, and never twice the same.

papermill executes them, on the runner that computes studies. An execution that succeeded is kept
with the digest of what it depends on: the notebook's cells, the parameters, this package's code.
A batch that was stopped, or in which notebooks failed, goes on where it was.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
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
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from papermill.log import logger
from plotly.offline import get_plotlyjs

from rebasin_utils.chapters.lab import open_studies
from rebasin_utils.errors import InputError, RunError
from rebasin_utils.files import replace_synced
from rebasin_utils.nets.devices import cores
from rebasin_utils.running import cluster as clusters
from rebasin_utils.running import glossary
from rebasin_utils.running.dag import Outcome, Report, Task, execute
from rebasin_utils.running.notebooks import (
    QUIET_KERNEL,
    Notebook,
    absolute,
    check_parameters,
    environment,
    export_html,
    working_folder,
)
from rebasin_utils.study import plugins
from rebasin_utils.study.stage import Node
from rebasin_utils.study.store import Store

#: The variables of the environment that say how many cores a kernel may use.
SHARES = ("REBASIN_WORKERS", "OMP_NUM_THREADS")
#: Parameters that say where something is computed and kept, and not what.
_WHERE = ("store", "device")


@dataclass(frozen=True)
class Execution:
    """A notebook with the parameters that it gets; name: of its page and executed copy."""

    notebook: Notebook
    values: dict[str, Any]
    name: str

    @property
    def digest(self) -> str:
        """Of everything that the executed notebook depends on: cells, parameters, code, results."""
        content = nbformat.read(self.notebook.path, as_version=4)
        cells = [(cell.cell_type, cell.source) for cell in content.cells]
        read = [[node.key.path for node in study_nodes] for study_nodes in self._needs().values()]
        text = json.dumps([cells, self.values, _code(), read], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def lacks_results(self) -> bool:
        """Whether the store lacks some of the artifacts that the notebook shows."""
        return any(
            node.key not in store for store, nodes in self._needs().items() for node in nodes
        )

    def _needs(self) -> dict[Store, list[Node]]:
        """What the notebook's chapter reads, by the store that it reads it from."""
        if "preset" not in self.notebook.parameters:
            return {}
        values = {**self.notebook.parameters, **self.values}
        asked = {
            n: values[n] for n in ("preset", "seeds", "width", "changes", "store") if n in values
        }
        studies = open_studies(**asked, device="cpu")
        chapter = plugins.chapters(studies[0].settings.plugins).get(self.notebook.name)
        if chapter is None or chapter.missing(studies):
            return {}
        return {studies[0].store: chapter.needs(studies)}


@cache
def _code() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
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
            if mine.get("store"):
                mine["store"] = absolute(mine["store"])
            name = _name(notebook, mine)
            found[name] = Execution(notebook, mine, name)
    return list(found.values())


def _name(notebook: Notebook, values: Mapping[str, Any]) -> str:
    """The notebook's, and what is set otherwise than there, as in 04-…-sparsity0.97.

    So that another preset's page does not take its place. Where values do not fit into a file's
    name as they are, a digest tells them apart.
    """
    there = notebook.parameters
    given = {n: v for n, v in values.items() if n not in _WHERE and v != there[n]}
    said = "".join(f"-{name}{value}" for name, value in sorted(given.items()))
    name = re.sub(r"[^\w.,+-]+", "_", said)
    if name != said or len(name) > 80:
        name = f"{name[:72]}-{hashlib.sha256(said.encode()).hexdigest()[:6]}"
    return notebook.name + name


def run_batch(
    batch: Sequence[Execution],
    folder: Path,
    at_once: int = 2,
    cluster: str | Path | None = "local",
) -> pd.DataFrame:
    """Execute what was not executed before, and export each notebook as a page.

    Args:
        folder: gets `<name>.ipynb`, `<name>.html`, `plotly.min.js`, `glossary.html`, `index.html`.
        at_once: notebooks that run at the same time on this machine; they share its cores.
        cluster: as for `runner.run`; "local" and None execute on this machine.

    Returns:
        One row per execution: notebook, parameters, state (executed, cached or failed), seconds,
        page and problem.
    """
    where = None if cluster in ("local", None) else clusters.find(cluster)
    folder.mkdir(parents=True, exist_ok=True)
    replace_synced(folder / "plotly.min.js", get_plotlyjs().encode())
    glossary.write_page(folder)
    due = [execution for execution in batch if not _is_there(execution, folder)]
    at_once = min(at_once, len(due))
    share = max(cores() // max(at_once, 1), 1) if where is None else None
    tasks = [Task(f"notebook-{e.name}", _execute, (e, folder.absolute(), share)) for e in due]
    with ExitStack() as open_now:
        client = None
        if where is not None and due:
            device, scratch = torch.device("cpu"), folder.absolute() / ".cluster"
            client = open_now.enter_context(clusters.connected(where, device, scratch))
        elif where is None and at_once > 1:
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
    """Whether the same was executed before, to its end, on results that are still there."""
    copy = folder / f"{execution.name}.ipynb"
    if not copy.is_file() or not copy.with_suffix(".html").is_file():
        return False
    try:
        metadata = json.loads(copy.read_bytes())["metadata"]
    except (ValueError, LookupError):
        return False
    same = metadata.get("rebasin", {}).get("digest") == execution.digest
    return same and not execution.lacks_results()


class _Engine(NBClientEngine):
    """papermill's own, whose kernels get an environment of their own."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> Any:
        client = PapermillNotebookClient(
            nb_man, kernel_name=kernel_name, extra_arguments=list(QUIET_KERNEL), log=logger
        )
        return client.execute(env=options["env"])


papermill_engines.register("rebasin", _Engine)


def _execute(execution: Execution, folder: Path, workers: int | None, report: Report) -> float:
    """Execute one notebook and export its page, whether it fails or not; returns its seconds.

    workers: of the studies that its kernel runs, and threads of what else it computes, where the
        variables `SHARES` do not say; None: of a machine that this kernel has for itself.
    """
    env = ({} if workers is None else dict.fromkeys(SHARES, str(workers))) | environment()
    begin, notebook, problem = time.monotonic(), execution.notebook, None
    running = folder / f".running-{execution.name}.ipynb"
    try:
        Context().run(  # an empty one: Dask's threads share theirs, and an event loop with it
            papermill.execute_notebook,
            notebook.path,
            running,
            execution.values,
            cwd=working_folder(notebook),
            kernel_name="python3",
            progress_bar=False,
            engine_name="rebasin",
            request_save_on_cell_execute=False,  # all of it, before and after every cell
            env=env,
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
