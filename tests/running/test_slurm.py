"""The study, unchanged, on a real Slurm: the same table as here, and jobs that are cancelled."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import slurm_node
import torch
from command import options_for, rebasin

from rebasin_utils.running.runner import run
from rebasin_utils.study import presets
from rebasin_utils.study.study import Study

DESCRIPTION = """
kind: slurm
jobs: 2
memory: 1500MB
walltime: "00:10:00"
gpus: 1
device: cpu  # the GPUs are pretended
interface: lo
"""

#: Nothing here may take longer.
PATIENCE = 240


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory):
    if why := slurm_node.why_not():
        pytest.skip(why)
    with slurm_node.running(tmp_path_factory.mktemp("slurm")) as configuration:
        yield configuration


def cancel_the_first_job(cancelled: list[str]) -> None:
    """As an administrator would, once both are at work."""
    end = time.monotonic() + PATIENCE
    while not cancelled and time.monotonic() < end:
        running = slurm_node.ask("squeue", "--noheader", "--states=R", "--format=%i").split()
        if len(running) == 2:
            time.sleep(3)
            subprocess.run(["scancel", running[0]], timeout=10, check=True)
            cancelled.append(running[0])
        time.sleep(0.5)


def test_a_job_that_slurm_refuses_is_said_at_once(slurm, tmp_path: Path):
    description = tmp_path / "slurm.yaml"
    description.write_text(DESCRIPTION + "partition: moon\n")
    store = tmp_path / "store"
    refused = rebasin(
        "run", "--preset", "smoke", "--cluster", str(description), "--store", str(store)
    )
    assert refused.returncode == 2
    assert "Slurm refuses the job: " in refused.stderr
    assert "invalid partition" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_the_study_runs_on_slurm_and_outlives_a_cancelled_job(slurm, finished, tmp_path: Path):
    description = tmp_path / "slurm.yaml"
    description.write_text(DESCRIPTION)
    cancelled: list[str] = []
    administrator = threading.Thread(target=cancel_the_first_job, args=(cancelled,), daemon=True)
    administrator.start()
    options = options_for(finished.settings)
    command = [sys.executable, "-m", "rebasin_utils.cli", "run", *options]
    where = ["--cluster", str(description), "--store", str(tmp_path / "store")]
    done = subprocess.run([*command, *where], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    administrator.join(20)
    study = Study(finished.settings, tmp_path / "store")
    tables = [s.results().drop(columns="seconds") for s in (study, finished)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert study.missing() == []
    jobs = slurm_node.ask("scontrol", "show", "jobs", "--oneliner").splitlines()
    assert len(jobs) >= 2  # and perhaps the one that took the cancelled one's place
    assert all("JobName=rebasin" in job and "gres:gpu:1" in job for job in jobs)
    assert cancelled
    log = (slurm.parent / "slurmctld.log").read_text()
    print(*re.findall(r".*JobId=.*", log), done.stdout, sep="\n")  # shown by pytest -s


def test_a_job_with_several_gpus_is_that_many_ranks(slurm, tmp_path: Path):
    description = tmp_path / "slurm.yaml"
    description.write_text(DESCRIPTION.replace("gpus: 1", "gpus: 2").replace("1500MB", "3000MB"))
    settings = presets.preset("smoke")[0].with_values(seeds=1, **{"model.name": "mlp_bn"})
    ranked, alone = (Study(settings, tmp_path / name, "cpu") for name in ("ranked", "alone"))
    run(ranked, stages=["dense"], cluster=description, quiet=True)
    run(alone, stages=["dense"], cluster=None, quiet=True)
    for node in alone.nodes("dense"):
        mine, theirs = (study.tensors(node) for study in (alone, ranked))
        assert all(torch.allclose(t, theirs[name], atol=1e-3) for name, t in mine.items())
        assert any(not torch.equal(t, theirs[name]) for name, t in mine.items())  # two halves
