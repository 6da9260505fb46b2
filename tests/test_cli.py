"""The command line: what it prints, and that a mistake is one sentence and exit code 2."""

import contextlib
import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from rebasin_utils import cli

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


@dataclass
class Finished:
    returncode: int
    stdout: str
    stderr: str


def rebasin(*arguments: str) -> Finished:
    """Call the command as the shell would, in this process: starting one costs seconds."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["rebasin", *arguments])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
    return Finished(code, out.getvalue(), err.getvalue())


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
    assert rows["sparse"][:4] == ["40", "0", "0", "0"]
    assert "0 of them left" in printed


def test_verdicts_name_claim_and_interval(smoke: Path):
    printed = rebasin("verdict", "--preset", "smoke", "--store", str(smoke)).stdout
    assert "permuted − naive, pp: k=1:" in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "--preset", "nonsense"], "preset = 'nonsense': choose one of smoke, pocket"),
        (["run", "--set", "seeds=0"], "seeds = 0: must be greater than or equal to 1"),
        (["run", "--set", "seeds=many"], "seeds = 'many': must be a valid integer"),
        (["run", "--set", "sparsities=[1.0]"], "sparsities[0] = 1.0: must be less than 1"),
        (["run", "--set", "sparsities=[-0.1]"], "sparsities[0] = -0.1: must be greater than"),
        (["run", "--set", "rewind_epochs=[99]"], "rewind_epochs = 99: must be below"),
        (["run", "--set", "sede=3"], "sede = 3: no such setting; there are name, dataset"),
        (["run", "--set", "dense.lrr=3"], "dense.lrr = 3: no such setting"),
        (["run", "--set", "dense.lr=-1"], "dense.lr = -1: must be greater than 0"),
        (["run", "--set", "dense.lr=NaN"], "dense.lr = nan: must be"),
        (["run", "--set", "seeds"], "'seeds': write it as name=value"),
        (["run", "--set", "dataset=mnist"], "dataset = 'mnist': choose one of fashion-mnist-10k"),
        (["run", "--set", "model=lenet"], "model = 'lenet': choose one of mlp, resnet8"),
        (["run", "--set", "pool=3"], "pool = 3: must divide the image side, 28 pixels"),
        (["run", "--set", "dense.batch_size=20000"], "there are 512 training images"),
        (["run", "--set", "name=../../etc"], "name = '../../etc': String should match pattern"),
        (["run", "--workers", "0"], "workers = 0: must be at least 1"),
        (["run", "--device", "abacus"], "device = 'abacus': not available here"),
        (["run", "--set", "dataset=cifar10"], "dataset = 'cifar10': no files in"),
        (["notebooks", "run", "99"], "notebook = '99': choose one of 02-two-nets"),
        (["notebooks", "run", "04", "-p", "sparsty=0.9"], "sparsty = 0.9: 04-naive-permuted-lth"),
        (["notebooks", "run", "04", "-p", "sparsity=true"], "expects float, as in 0.9"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
):
    store = tmp_path / "store"
    if arguments[0] == "run":
        arguments = [*arguments, *(["--preset", "smoke"] if "--preset" not in arguments else [])]
    # No network: a data set that is not there cannot be fetched either.
    monkeypatch.setenv("REBASIN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("REBASIN_STORE", str(store))
    failed = rebasin(*arguments)
    assert failed.returncode == 2
    assert sentence in failed.stderr
    assert "Traceback" not in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
    assert not [path for path in store.rglob("*") if path.is_file()]


def test_the_installed_command_shows_no_traceback():
    command = Path(sys.executable).with_name("rebasin")
    failed = subprocess.run([command, "run", "--preset", "x"], capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.startswith("rebasin: preset = 'x'")
    assert "Traceback" not in failed.stderr


def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    failed = rebasin("run", "--preset", "smoke", "--store", str(tmp_path / "file" / "store"))
    assert failed.returncode == 2
    assert "cannot be written" in failed.stderr
    assert "Traceback" not in failed.stderr
