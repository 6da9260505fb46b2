"""The `rebasin` command, called as the shell would call it, but in this process."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import dataclass

import pytest

from rebasin_utils import cli
from rebasin_utils.study.presets import preset
from rebasin_utils.study.settings import Settings


def options_for(settings: Settings) -> list[str]:
    """What makes the smoke preset these settings."""
    (smoke,) = preset("smoke")
    before, after = (s.model_dump(mode="json") for s in (smoke, settings))
    changed = {name: value for name, value in after.items() if value != before[name]}
    options = [f"--set={name}={json.dumps(value)}" for name, value in changed.items()]
    return ["--preset", "smoke", *options]


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
