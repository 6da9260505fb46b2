"""Where the modules are that had other names: an old notebook is told, not only refused."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.abc import MetaPathFinder

_ROOMS = {
    "chapters": "gallery lab still style toy_widget",
    "landscape": "diversity interpolation plane repair toy toy_rewind toy_widths",
    "nets": "data devices embedded masks models",
    "running": "batch cluster costs dag notebooks progress runner",
    "study": "inventory plan presets settings store",
    "symmetry": "activations assignment matching moments permutation tracing weight_matching",
    "training": "graphs pruning stacking",
}
_SPLIT = {
    "analyses": "study.stages",
    "cli_notebooks": "cli.notebooks",
    "cli_options": "cli.options",
    "cli_store": "cli.store",
    "figures": "chapters (a module for every notebook)",
    "maps": "chapters (a module for every notebook)",
    "rows": "study.columns",
    "tables": "study.stages and chapters.evidence",
    "toy_figures": "chapters.toy",
    "verdicts": "chapters (a module for every notebook)",
}
#: Old name -> new name, below this package.
PLACES = {old: f"{room}.{old}" for room, names in _ROOMS.items() for old in names.split()} | _SPLIT
PLACES |= {
    f"trace_{name}": f"symmetry.tracing.{name}"
    for name in ("capture", "groups", "layers", "moves", "rules", "values", "walk")
}


class Moved(MetaPathFinder):
    """Comes last among the finders, so it is asked for what none of them found."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> None:
        package, _, rest = name.partition(".")
        old = rest.partition(".")[0]
        if package == "rebasin_utils" and old in PLACES:
            raise ModuleNotFoundError(told(old), name=name)


def told(old: str) -> str:
    """Where the module with that old name is now."""
    return f"rebasin_utils.{old} has moved: it is now rebasin_utils.{PLACES[old]}"
