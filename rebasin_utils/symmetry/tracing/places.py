"""Where something stands: the module of a node, and the line of an error, for people."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from rebasin_utils.errors import InputError

#: The attribute under which a model stands when it is traced inside another module.
WRAPPED = "the_traced_net"

_NOT_THE_USERS = (os.path.dirname(torch.__file__), str(Path(__file__).parents[2]), "<")


def place_of(node: fx.Node) -> str:
    """The path of the module in which a node stands; "" for the model's own forward."""
    if node.op == "call_module":
        path = node.target
    else:
        stack = node.meta.get("nn_module_stack")
        path = next(reversed(stack.values()))[0] if stack else ""
    return own_path(path)


def own_path(path: str) -> str:
    """A module's path in the user's model."""
    return "" if path == WRAPPED else path.removeprefix(f"{WRAPPED}.")


def attribute(root: nn.Module, path: str) -> Any:
    """What stands at a dotted path."""
    for part in path.split("."):
        root = getattr(root, part)
    return root


def own_line(frames: traceback.StackSummary) -> str:
    """The innermost line of the user's own code: " (net.py, line 7)", or "" where there is none."""
    own = [f for f in frames if not f.filename.startswith(_NOT_THE_USERS)]
    return f" ({os.path.basename(own[-1].filename)}, line {own[-1].lineno})" if own else ""


def cannot_trace(place: str, error: Exception) -> InputError:
    """An error of a tracer or of the forward as one sentence that names the module and the line."""
    text = " ".join(str(error).split()) or type(error).__name__
    line = own_line(traceback.extract_tb(error.__traceback__))
    return InputError(f"cannot trace {place}{line}: {text[:200]}")
