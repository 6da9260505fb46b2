"""Every key stays: stores and shipped results are found by them.

`golden_plans.json` has per study and stage the number of artifacts, their epochs, and a digest of
all keys, lot by lot. The first one was made before stages had files of their own, and held until
the presets changed; where a preset, or what a stage computes, changes on purpose,
`python tests/study/test_golden.py` makes it again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from rebasin_utils.study.plan import Plan
from rebasin_utils.study.presets import PRESETS
from rebasin_utils.study.settings import Settings

FILE = Path(__file__).with_name("golden_plans.json")
GOLDEN = json.loads(FILE.read_text())
STUDIES = {settings.name: settings for studies in PRESETS.values() for settings in studies}


def summaries(settings: Settings) -> dict[str, list]:
    """Of every stage that has artifacts: how many, their epochs, a digest of their keys."""
    plan = Plan(settings)
    found = {}
    for stage in plan.stages:
        lots = plan.tasks(stage, together=settings.model.name.startswith("mlp"))
        of_lots = [[f"{n.key.label} {n.key.digest} {n.epochs}" for n in lot] for lot in lots]
        text = "\n\n".join("\n".join(lines) for lines in of_lots)
        nodes = [node for lot in lots for node in lot]
        if nodes:
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            found[stage] = [len(nodes), sum(node.epochs for node in nodes), digest]
    return found


@pytest.mark.parametrize("name", STUDIES)
def test_the_keys_the_lots_and_the_epochs_of_a_preset_are_what_they_were(name):
    assert summaries(STUDIES[name]) == GOLDEN[name]


if __name__ == "__main__":
    FILE.write_text(json.dumps({n: summaries(s) for n, s in STUDIES.items()}, indent=1) + "\n")
