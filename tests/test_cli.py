"""The command line: what it prints, and that a mistake is one sentence and exit code 2."""

import io
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from command import rebasin

from rebasin_utils.plan import Plan
from rebasin_utils.presets import preset

REQUIRED = [
    "preset",
    "dataset",
    "model",
    "width",
    "sparsity",
    "prunable_sparsity",
    "global_sparsity",
    "method",
    "rewind_epoch",
    "seed",
    "epochs",
    "test_accuracy",
    "test_loss",
    "diverged",
    "seconds",
    "device",
]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the smoke study has run."""
    store = tmp_path_factory.mktemp("store")
    done = rebasin("run", "--preset", "smoke", "--workers", "1", "--quiet", "--store", str(store))
    assert done.returncode == 0, done.stderr
    return store


def test_every_command_explains_itself():
    for command in (
        [], ["run"], ["plan"], ["status"], ["results"], ["study"], ["verdict"],
        ["notebooks", "run"], ["store", "list"], ["store", "verify"], ["store", "prune"],
    ):  # fmt: skip
        help_text = rebasin(*command, "--help")
        assert help_text.returncode == 0
        assert "Usage:" in help_text.stdout


def test_results_are_printed_as_csv_with_every_method(smoke: Path):
    printed = rebasin("results", "--preset", "smoke", "--format", "csv", "--store", str(smoke))
    table = pd.read_csv(io.StringIO(printed.stdout))
    assert set(REQUIRED) <= set(table.columns)
    assert set(table["method"]) == {
        "dense", "imp", "lth", "naive", "permuted", "random_mask", "random_permutation",
    }  # fmt: skip


def test_a_second_run_computes_nothing(smoke: Path):
    again = rebasin("run", "--preset", "smoke", "--quiet", "--store", str(smoke))
    assert again.stdout.startswith("0 artifacts computed")


def test_a_plan_is_printed_without_data_and_without_a_store(tmp_path: Path):
    printed = rebasin(
        "plan", "--preset", "paper-resnet20-w1-cifar10-as-released", "--store", str(tmp_path / "no")
    )
    assert printed.returncode == 0
    rows = {line.split()[0]: line.split()[1:] for line in printed.stdout.splitlines() if line}
    assert rows["sparse"] == ["324", "54,000", "54,000", "unknown"]
    assert "total: 57,900 epochs, 57,900 of them left" in printed.stdout
    assert not (tmp_path / "no").exists()


def test_the_status_of_a_finished_study(smoke: Path):
    printed = rebasin("status", "--preset", "smoke", "--store", str(smoke)).stdout
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line}
    (settings,) = preset("smoke")
    assert rows["sparse"][:4] == [str(len(Plan(settings).nodes("sparse"))), "0", "0", "0"]
    assert "0 of them left" in printed


def test_verdicts_name_claim_and_interval(smoke: Path):
    printed = rebasin("verdict", "--preset", "smoke", "--store", str(smoke)).stdout
    assert "permuted − naive, pp: k=1:" in printed


def test_the_installed_command_shows_no_traceback():
    command = Path(sys.executable).with_name("rebasin")
    failed = subprocess.run([command, "run", "--preset", "x"], capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.startswith("rebasin: preset = 'x'")
    assert "Traceback" not in failed.stderr
