"""The `rebasin` command, called as the shell would call it, but in this process."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass

import pytest

from rebasin_utils import cli

#: What makes the smoke preset the study of the fixture `tiny`.
TINY = [
    f"--set={field}={value}"
    for field, value in (
        ("name", "tiny"),
        ("train_limit", 256),
        ("sparsities", [0.5]),
        ("dense.batch_size", 64),
        ("imp.batch_size", 64),
    )
]


@dataclass
class Finished:
    returncode: int
    stdout: str
    stderr: str


def rebasin(*arguments: str) -> Finished:
    """Call the command as the shell would, in this process: starting one costs seconds."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["rebasin", *arguments])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
    return Finished(code, out.getvalue(), err.getvalue())
