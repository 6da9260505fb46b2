"""How a cluster is described, started and found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from rebasin_utils.errors import InputError
from rebasin_utils.nets.devices import KEEP_MEMORY
from rebasin_utils.running import cluster


def test_a_description_is_read_from_yaml(tmp_path: Path):
    file = tmp_path / "slurm.yaml"
    file.write_text(
        "kind: slurm\njobs: 4\nmemory: 8GiB\nwalltime: '1-02:00:00'\ngpus: 1\n"
        "directives: ['--constraint=a100']\n"
    )
    where = cluster.find(file)
    assert (where.jobs, where.gpus, where.allowed_failures) == (4, 1, 3)
    assert cluster._seconds(where.walltime) == 26 * 3600


def test_several_gpus_of_a_job_are_one_workers(tmp_path: Path):
    file = tmp_path / "slurm.yaml"
    content = "kind: slurm\njobs: 1\nmemory: 8GiB\nwalltime: '01:00:00'\ngpus: 8\n"
    file.write_text(content)
    assert cluster.find(file).gpus == 8
    file.write_text(content + "workers: 2\n")
    with pytest.raises(InputError, match=r"workers = 2: must be 1 where a job has several GPUs"):
        cluster.find(file)


def test_a_job_asks_slurm_for_what_the_description_says(tmp_path: Path):
    where = cluster.Slurm(
        kind="slurm", jobs=2, workers=2, cores=4, memory="8GB", walltime="10:00:00", gpus=1,
        partition="long", account="me", directives=("--constraint=a100",), prologue=("module x",),
    )  # fmt: skip
    with cluster._slurm(where, tmp_path) as started:
        script = started.job_script()
    for line in ("-p long", "-A me", "--cpus-per-task=4", "-t 10:00:00", "--gres=gpu:1"):
        assert f"#SBATCH {line}\n" in script
    assert "#SBATCH --constraint=a100\n" in script
    assert "\nmodule x\n" in script
    assert f"\nexport MALLOC_TRIM_THRESHOLD_={KEEP_MEMORY['MALLOC_TRIM_THRESHOLD_']}\n" in script
    assert "--nthreads 1 " in script
    assert "--nworkers 2 " in script
    assert "--lifetime 32400s" in script  # it ends by itself before Slurm ends it
    assert "--tls-key" in script  # what is sent is unpickled, so nobody else may send


@pytest.mark.parametrize(
    ("visible", "chosen", "expected"),
    [
        ("3,5", "cuda", ["3", "5", "3"]),
        ("3,5", "cuda:1", ["5", "5", "5"]),
        ("3,5", "cpu", [None, None, None]),
    ],
)
def test_workers_are_dealt_to_the_gpus_in_turn(monkeypatch, visible, chosen, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpus = cluster._gpus(torch.device(chosen))
    assert [cluster._pinned(gpus, i).get("CUDA_VISIBLE_DEVICES") for i in range(3)] == expected


def test_an_address_where_nobody_answers_is_refused(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(cluster, "PATIENCE", 0.5)
    connected = cluster.connected("tcp://127.0.0.1:9", torch.device("cpu"), tmp_path)
    refused = pytest.raises(InputError, match=r"'tcp://.*:9': no scheduler answers there")
    with refused, connected:
        pass


def test_a_local_worker_keeps_the_memory_that_it_frees_and_has_one_thread(tmp_path: Path):
    where = cluster.Local(workers=1)
    with cluster.connected(where, torch.device("cpu"), tmp_path) as client:
        (environment,) = client.run(lambda: dict(os.environ)).values()
    assert environment.items() >= KEEP_MEMORY.items()
    assert environment["OMP_NUM_THREADS"] == "1"
