"""What the test files share."""

from __future__ import annotations

import os

import pytest
import torch

from rebasin_utils.nets import data
from rebasin_utils.nets.devices import reproducible
from rebasin_utils.running import runner
from rebasin_utils.study.presets import preset
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.store import Store
from rebasin_utils.study.study import Study


def pytest_addoption(parser):
    on = "what tests/training/test_training.py trains on"
    parser.addoption("--device", default="cpu", choices=["cpu", "cuda"], help=on)


def pytest_configure(config):
    if config.getoption("--device") == "cpu":  # "auto" is the CPU, in what tests start as well
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        raise pytest.UsageError("--device = cuda: torch sees no GPU here; the default is cpu")


#: Files whose tests train studies, start kernels, browsers or clusters, or trace large nets.
SLOW = [
    "test_batch",
    "test_brought",
    "test_browser",
    "test_cli",
    "test_crew",
    "test_dag",
    "test_drills",
    "test_few_images",
    "test_gpu",
    "test_judgement",
    "test_matching_networks",
    "test_norms",
    "test_notebooks",
    "test_overlaps",
    "test_pictures",
    "test_plugin",
    "test_progress",
    "test_pruning",
    "test_ranks",
    "test_rescaling",
    "test_reuse",
    "test_shipped",
    "test_sign_nets",
    "test_sign_stages",
    "test_site",
    "test_slides",
    "test_slurm",
    "test_streams",
    "test_study",
    "test_tracing_hubs",
    "test_tracing_oracle",
    "test_tracing_property",
    "test_tracing_torchvision",
    "test_training",
    "test_training_benchmark",
    "test_wheel",
]


def pytest_collection_modifyitems(items):
    """What takes long comes first, so that no worker waits for another's last file."""
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker("slow")
    items.sort(key=lambda item: item.path.stem not in SLOW)


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
    empty = Store(tmp_path / "store")
    empty.prepare()
    return empty


@pytest.fixture(scope="session")
def tiny() -> Settings:
    """A whole study, all stages and methods, in a few seconds."""
    (smoke,) = preset("smoke")
    changes = {
        "data.train_limit": 256,
        "sparse.sparsities": (0.5,),
        "closer_look.sparsity": 0.5,
        "dense.batch_size": 64,
        "imp.batch_size": 64,
    }
    return smoke.with_values(name="tiny", **changes)


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory) -> Study:
    """The tiny study, run by one worker. To be read; what changes a store works on a copy."""
    study = Study(tiny, tmp_path_factory.mktemp("finished") / "store")
    runner.run(study, workers=1, quiet=True)
    return study


@pytest.fixture(scope="session")
def smoked(tmp_path_factory) -> Study:
    """The smoke preset, run by one worker. To be read; what changes a store works on a copy."""
    (smoke,) = preset("smoke")
    study = Study(smoke, tmp_path_factory.mktemp("smoked") / "store")
    runner.run(study, workers=1, quiet=True)
    return study


@pytest.fixture(scope="session")
def signed(tmp_path_factory) -> list[Study]:
    """The smoke studies of signed masks: with batch norm, and without norm layers. To be read."""
    store = tmp_path_factory.mktemp("signed") / "store"
    studies = [Study(settings, store) for settings in preset("smoke-signs")]
    runner.run(studies, workers=1, quiet=True)
    return studies


@pytest.fixture(scope="session")
def reused(tmp_path_factory) -> Study:
    """The smoke study of a mask on other data. To be read."""
    (settings,) = preset("smoke-reuse")
    study = Study(settings, tmp_path_factory.mktemp("reused") / "store")
    runner.run(study, workers=1, quiet=True)
    return study
