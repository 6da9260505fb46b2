"""What the test files share."""

from __future__ import annotations

import os

import pytest
import torch

from rebasin_utils import data, runner
from rebasin_utils.devices import reproducible
from rebasin_utils.presets import preset
from rebasin_utils.settings import Settings
from rebasin_utils.store import Store
from rebasin_utils.study import Study


def pytest_addoption(parser):
    on = "what tests/test_training.py trains on"
    parser.addoption("--device", default="cpu", choices=["cpu", "cuda"], help=on)


def pytest_configure(config):
    if config.getoption("--device") == "cpu":  # "auto" is the CPU, in what tests start as well
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        raise pytest.UsageError("--device = cuda: torch sees no GPU here; the default is cpu")


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session", autouse=True)
def _reproducible(device):
    with reproducible(device):
        yield


@pytest.fixture(scope="session")
def images() -> data.Images:
    """256 real training images of 14x14 pixels."""
    return data.load("fashion-mnist-10k", "train", pool=2, limit=256)


@pytest.fixture
def store(tmp_path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def tiny() -> Settings:
    """A whole study, all stages and methods, in a few seconds."""
    (smoke,) = preset("smoke")
    recipes = {"dense.batch_size": 64, "imp.batch_size": 64}
    return smoke.with_values(
        name="tiny", train_limit=256, sparsities=(0.5,), cell=(0.5, 1), **recipes
    )


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory) -> Study:
    """The tiny study, run by one worker. To be read; what changes a store works on a copy."""
    study = Study(tiny, tmp_path_factory.mktemp("finished") / "store")
    runner.run(study, workers=1, quiet=True)
    return study
