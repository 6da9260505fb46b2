"""A net and images of the user's own go through the whole argument by settings alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rebasin_utils.errors import InputError
from rebasin_utils.running.runner import run
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.study import Study

NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes: int, units: int = 8):
        super().__init__()
        self.conv = nn.Conv2d(3, units, 3, padding=1)
        self.norm = nn.BatchNorm2d(units)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(units, num_classes)

    def forward(self, x):
        x = self.pool(self.relu(self.norm(self.conv(x))))
        return self.head(x.view(x.size(0), -1))
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Path:
    """A folder with `net.py` and with `images`: three classes that differ in their colour."""
    root = tmp_path_factory.mktemp("mine")
    (root / "net.py").write_text(NET)
    rng = np.random.default_rng(0)
    for split, each in (("train", 24), ("test", 8)):
        for channel, colour in enumerate(("blue", "green", "red")):
            folder = root / "images" / split / colour
            folder.mkdir(parents=True)
            for i in range(each):
                pixels = rng.integers(0, 120, (8, 8, 3))
                pixels[..., channel] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root


def settings_for(tiny: Settings, root: Path) -> Settings:
    return tiny.with_values(
        name="mine",
        seeds=1,
        closer_look={},
        **{
            "data.source": str(root / "images"),
            "data.pool": 1,
            "data.train_limit": None,
            "data.test_limit": None,
            "model.name": f"{root}/net.py:Net",
            "dense.batch_size": 16,
            "imp.batch_size": 16,
            "imp.prune_b": False,
        },
    )


@pytest.fixture(scope="module")
def study(tiny, mine, tmp_path_factory) -> Study:
    study = Study(settings_for(tiny, mine), tmp_path_factory.mktemp("store"))
    run(study, workers=1, quiet=True)
    return study


def test_every_stage_is_computed_and_the_colours_are_learned(study):
    assert study.missing() == []
    table = study.results()
    assert set(table["method"]) >= {"dense", "imp", "lth", "naive", "permuted"}
    assert table.loc[table["method"] == "dense", "test_accuracy"].max() > 0.5
    assert list(study.spec.groups) == ["conv"]


def test_where_the_files_lie_does_not_matter_and_what_is_in_them_does(study, tiny, tmp_path):
    mine = Path(study.settings.data.source).parent
    shutil.copytree(mine, tmp_path / "moved")
    moved = Study(settings_for(tiny, tmp_path / "moved"), study.store)
    assert moved.missing() == []
    (tmp_path / "moved" / "net.py").write_text(NET.replace("units: int = 8", "units: int = 4"))
    edited = settings_for(tiny, tmp_path / "moved").with_values(**{"data.limit": 48})
    assert len(Study(edited, study.store).missing()) == len(
        Study(edited, study.store).plan.all_nodes()
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model.name": "no_such_module:Net"}, "model.name = 'no_such_module:Net'"),
        ({"model.args": {"untis": 3}}, "it raised TypeError"),
        ({"data.source": "/no/such/folder"}, "there is no such file or folder"),
        ({"data.limit": 1000}, "data.limit = 1000"),
    ],
)
def test_what_cannot_be_is_said_before_any_training(study, tmp_path, changes, sentence):
    with pytest.raises(InputError) as raised:
        run(Study(study.settings.with_values(**changes), tmp_path), workers=1, quiet=True)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.rglob("record.json"))
