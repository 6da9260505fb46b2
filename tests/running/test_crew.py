"""Ranks that `torchrun` has started compute a study together."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from rebasin_utils.errors import InputError, RanksLost
from rebasin_utils.running import ranked
from rebasin_utils.running.dag import Task, execute
from rebasin_utils.running.runner import run
from rebasin_utils.study import inventory, presets
from rebasin_utils.study.settings import assignments
from rebasin_utils.study.study import Study
from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.training.ranks import Ranks, joined

SCRIPT = Path(__file__).with_name("ranked_study.py")
FEW = (
    'sparse.methods=["permuted"]',
    "sparse.sparsities=[0.5]",
    "closer_look={}",
    "paths.to_every_round=false",
)


def torchrun(store: Path, life: str | float = "whole", *changes: str) -> subprocess.Popen:
    """Two ranks that compute a study; one is killed after `life` seconds."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(SCRIPT), str(store), str(life), *FEW, *changes]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (a pipe would fill up)
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    process.log = log
    return process


def ended(process: subprocess.Popen) -> tuple[int, str]:
    code = process.wait(300)
    process.log.seek(0)
    return code, process.log.read()


def bytes_of(store: Path) -> dict[str, bytes]:
    """Of every artifact; what a kill in the middle of writing leaves behind is none."""
    return {
        file.relative_to(store).as_posix(): file.read_bytes()
        for file in store.glob("[!.]*/*/*.safetensors")
    }


def study(store: Path) -> Study:
    return Study(presets.preset("smoke")[0].with_values(seeds=1, **assignments(FEW)), store, "cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The store of two ranks that nothing happened to."""
    store = tmp_path_factory.mktemp("ranks") / "store"
    code, said = ended(torchrun(store))
    assert code == 0, said
    assert "rank 1: 0 made" in said
    return store


def test_two_ranks_make_the_study_of_one_process(whole, tmp_path):
    alone = study(tmp_path / "alone")
    run(alone, cluster=None, quiet=True)
    ranked = study(whole)
    assert ranked.missing() == []
    for node in ranked.plan.all_nodes():
        mine, theirs = (s.tensors(node) for s in (alone, ranked))
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert torch.allclose(tensor, theirs[name], atol=1e-5), (node, name)
    tables = [s.results()["test_accuracy"] for s in (alone, ranked)]
    assert (tables[0] - tables[1]).abs().max() < 0.002


@pytest.mark.parametrize("life", [0.8, 1.501])  # of the first rank, of the second
def test_a_run_of_which_a_rank_dies_ends_and_goes_on(whole, tmp_path, life):
    store = tmp_path / "store"
    code, said = ended(torchrun(store, life))
    if store.exists() and study(store).missing():  # it had begun, and something was left to do
        assert code
        assert "RanksLost: rank " in said
    code, said = ended(torchrun(store))
    assert code == 0, said
    assert bytes_of(store) == bytes_of(whole)
    assert list(inventory.damaged(study(store).store)) == []


def test_a_rank_that_is_stopped_while_it_traces_says_so(monkeypatch):
    """Tracing turns what a model raises into a sentence about the model."""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in alone.items():
        monkeypatch.setenv(name, value)

    class Stopping(nn.Linear):
        def forward(self, x):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().forward(x)

    model = nn.Sequential(Stopping(4, 3), nn.ReLU(), nn.Linear(3, 2))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(RanksLost, match="rank 0: stopped"), joined(torch.device("cpu")):
            PermutationSpec.trace(model, torch.zeros(2, 4))
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN  # until it has said so
    finally:
        signal.signal(signal.SIGTERM, before)


def test_two_starts_on_one_store_share_the_work(whole, tmp_path):
    both = [torchrun(tmp_path / "store") for _ in range(2)]
    assert [ended(process)[0] for process in both] == [0, 0]
    assert bytes_of(tmp_path / "store") == bytes_of(whole)


def test_ranks_with_different_settings_are_refused(tmp_path):
    code, said = ended(torchrun(tmp_path / "store", "whole", "differ"))
    assert code
    assert "InputError: rank 1 has other settings than rank 0: start all ranks alike" in said
    assert not (tmp_path / "store").exists()


def test_a_batch_that_ranks_cannot_divide_is_refused(tmp_path):
    code, said = ended(torchrun(tmp_path / "store", "whole", "imp.batch_size=51"))
    assert code
    assert "imp.batch_size = 51: must be a multiple of the 2 ranks" in said


@pytest.mark.parametrize("how", [{"workers": 2}, {"cluster": "slurm.yaml"}])
def test_ranks_and_other_processes_do_not_go_together(how, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "0")
    ((name, value),) = how.items()
    with pytest.raises(InputError, match=rf"{name} = {value!r}: .* torchrun, whose 8 processes"):
        run(study(tmp_path), **how)


def test_a_worker_with_several_gpus_has_ranks_compute_its_lot(whole, tmp_path):
    asked = study(tmp_path / "store")
    digests = [node.key.digest for node in asked.plan.nodes("dense")]
    ranked.compute(asked.settings.model_dump_json(), asked.store.root, "cpu", digests, 2)
    made = bytes_of(tmp_path / "store")
    assert sum(name.startswith("dense/") for name in made) == 2
    assert made.items() <= bytes_of(whole).items()
    settings = asked.settings.with_values(**{"dense.batch_size": 51}).model_dump_json()
    with pytest.raises(InputError, match=r"dense.batch_size = 51: must be a multiple of the 2"):
        ranked.compute(settings, tmp_path / "store", "cpu", digests, 2)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("[gloo/pair.cc:1] Connection closed by peer"), "another rank died"),
        (RuntimeError("out of memory\nand more"), "out of memory"),
        (InputError("data.source = 'x': y is gone"), "data.source = 'x': y is gone"),
    ],
)
def test_what_befalls_one_rank_is_a_sentence_and_the_end_of_all(error, said):
    refused = pytest.raises(RanksLost, match=f"^rank 1: {re.escape(said)}")
    with refused as caught, Ranks(1, 2).together():
        raise error
    assert "\n" not in str(caught.value)


def test_a_failure_of_the_ranks_ends_the_run():
    def lost(report):
        raise RanksLost("rank 0: another rank died")

    task = Task("dense-1", lost, (), (), 1)
    with pytest.raises(RanksLost, match="another rank died"):
        execute([task, Task("dense-2", lost, (), (), 1)], None, lambda event: None)
