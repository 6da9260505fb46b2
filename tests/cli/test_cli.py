"""The command line: what it prints, and that a mistake is one sentence and exit code 2."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from command import rebasin

from rebasin_utils.cli import options, show
from rebasin_utils.running import notebooks
from rebasin_utils.study.plan import Plan
from rebasin_utils.study.presets import PRESETS, changed, differences, preset
from rebasin_utils.study.study import Study

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
def smoke(smoked: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a store in which the smoke study has run."""
    return shutil.copytree(smoked.store.root, tmp_path_factory.mktemp("cli") / "store")


def files(folder: Path) -> dict[str, int]:
    """Everything that lies below a folder, and when it was written."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*")}


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


def test_a_run_computes_all_and_writes_its_table_beside_the_store(tmp_path: Path):
    store = tmp_path / "runs" / "store"
    small = ["--preset", "smoke", "--set", "sparse.methods=[]", "--set", "sparse.sparsities=[]"]
    run = ["run", *small, "--quiet", "--workers", "1", "--store", str(store)]
    done = rebasin(*run)
    assert done.returncode == 0, done.stderr
    (settings,) = changed("smoke", {"sparse.methods": (), "sparse.sparsities": ()})
    made, _, rest = done.stdout.partition(" artifacts computed in ")
    assert int(made) == len(Plan(settings).all_nodes())
    table = Path(rest.partition("table: ")[2].strip())
    assert table.is_relative_to(tmp_path / "runs")
    results = pd.read_parquet(table)
    assert set(results["method"]) == {"dense"}
    again = rebasin(*run)
    assert again.stdout.startswith("0 artifacts computed")
    assert again.stdout.endswith(f"table: {table}\n")


def test_a_second_run_computes_nothing_and_a_changed_study_has_its_own_table(smoke: Path):
    run = ["run", "--preset", "smoke", "--quiet", "--store", str(smoke)]
    again = rebasin(*run)
    assert again.stdout.startswith("0 artifacts computed")
    other = rebasin(*run, "--set", "seeds=1")
    tables = [Path(s.stdout.partition("table: ")[2].strip()) for s in (again, other)]
    assert [set(pd.read_parquet(t)["seed"]) for t in tables] == [{0, 1}, {0}]


def test_reading_changes_nothing(smoke: Path, monkeypatch):
    def no_work(*_: object, **__: object) -> None:
        pytest.fail("something was computed")

    monkeypatch.setattr(Study, "compute", no_work)
    before = files(smoke)
    at = ["--preset", "smoke", "--store", str(smoke)]
    for command in (
        ["plan", *at], ["status", *at], ["results", *at], ["verdict", *at],
        ["store", "list", *at[2:]], ["store", "verify", *at[2:]], ["store", "prune", *at[2:]],
    ):  # fmt: skip
        done = rebasin(*command)
        assert (done.returncode, done.stderr) == (0, "")
        assert files(smoke) == before


def test_reading_an_empty_store_makes_nothing_in_it(tmp_path: Path):
    at = ["--preset", "smoke", "--store", str(tmp_path)]
    for command in (["plan", *at], ["status", *at], ["results", *at]):
        assert rebasin(*command).returncode == 0
    for command in ("list", "verify", "prune"):
        assert rebasin("store", command, "--store", str(tmp_path)).returncode == 0
    refused = rebasin("verdict", *at)
    assert refused.returncode == 2
    assert "is not computed yet: run the study first" in refused.stderr
    assert files(tmp_path) == {}


def test_a_verdict_on_a_part_of_the_runs_is_refused(smoke: Path, tmp_path: Path):
    part = shutil.copytree(smoke, tmp_path / "store")
    for run in (part / "sparse").glob("*random_mask*seed1*"):
        shutil.rmtree(run)
    said = rebasin("verdict", "--preset", "smoke", "--store", str(part))
    assert said.returncode == 2
    assert "is not computed yet: run the study first" in said.stderr


def test_a_study_of_fewer_methods_has_its_verdicts_too(smoke: Path):
    few = ["--preset", "smoke", "--set", 'sparse.methods=["lth", "naive"]', "--store", str(smoke)]
    done = rebasin("run", *few, "--workers", "1", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "REPAIR lowers the barrier" in rebasin("verdict", *few).stdout


def test_a_plan_is_printed_without_data_and_without_a_store(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("REBASIN_STORE", raising=False)
    monkeypatch.setattr(options, "default_store", lambda: tmp_path / "no")
    printed = rebasin("plan", "--preset", "paper-resnet20-w1-cifar10-as-released")
    assert printed.returncode == 0
    rows = {line.split()[0]: line.split()[1:] for line in printed.stdout.splitlines() if line}
    assert rows["sparse"] == ["324", "54,000", "382", "MB", "54,000", "unknown"]
    assert "total: 57,900 epochs, 57,900 of them left; 5" in printed.stdout
    assert not (tmp_path / "no").exists()


def test_the_whole_argument_leaves_out_what_a_preset_has_no_study_for(tmp_path, capsys):
    def executions(name: str):
        studies = [Study(settings, tmp_path) for settings in preset(name)]
        found = show.executions_of(studies, {"preset": name})
        return {e.notebook.name[:2]: e.values for e in found}, capsys.readouterr().out

    found, said = executions("smoke")
    assert sorted({f"{i:02}" for i in range(1, 14)} - found.keys()) == ["05", "11", "12", "13"]
    assert "11-winning-sign is left out: no study of this preset has signed masks" in said
    assert found["04"]["sparsity"] == 0.8
    assert (
        executions("smoke-widths")[0]["05"].items() >= {"sparsity": 0.5, "rewind_epoch": 1}.items()
    )
    found, said = executions("pocket")
    assert (len(found), said) == (13, "")
    own = {n.name[:2]: n.parameters for n in notebooks.find([])}
    assert all(found[n]["sparsity"] == own[n]["sparsity"] for n in ("04", "05"))
    assert found["05"]["rewind_epoch"] == own["05"]["rewind_epoch"]


def test_the_status_of_a_finished_study(smoke: Path):
    printed = rebasin("status", "--preset", "smoke", "--store", str(smoke)).stdout
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line}
    (settings,) = preset("smoke")
    assert rows["sparse"][:4] == [str(len(Plan(settings).nodes("sparse"))), "0", "0", "0"]
    assert "0 of them left" in printed


def test_verdicts_name_claim_and_interval(smoke: Path):
    verdict = ("verdict", "--preset", "smoke", "--store", str(smoke))
    short, whole = (rebasin(*verdict, *more).stdout for more in ([], ["--all"]))
    assert "permuted − naive, pp: k=1:" in whole
    assert "permuted − naive, pp: k=1:" not in short
    assert short.count("\n[") == whole.count("\n[") > 10


def test_the_installed_command_shows_no_traceback():
    command = Path(sys.executable).with_name("rebasin")
    failed = subprocess.run([command, "run", "--preset", "x"], capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.startswith("rebasin: preset = 'x'")
    assert "Traceback" not in failed.stderr


HEAVY = {"torch", "torchvision", "scipy", "pandas", "plotly", "matplotlib", "papermill", "dask"}


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["run", "--help"],
        ["notebooks", "--help"],
        ["store", "export", "--help"],
        ["run", "--worker"],
    ],
    ids=" ".join,
)
def test_a_help_text_and_a_slip_of_the_fingers_import_nothing_heavy(words):
    code = (
        "import sys\n"
        f"sys.argv = ['rebasin', *{words!r}]\n"
        "from rebasin_utils.cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    pass\n"
        "print('imported:', *sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said, _, imported = done.stdout.rpartition("imported:")
    assert "Usage" in said + done.stderr
    assert not HEAVY & set(imported.split())


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_ends_with_a_sentence_and_the_next_run_goes_on(tmp_path, workers):
    store = tmp_path / "runs" / "store"
    run = ["run", "--preset", "smoke", "--store", str(store), "--workers", workers]
    long = [*run, "--set", "dense.epochs=5000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rebasin_utils.cli", *long],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a terminal sends Ctrl-C to the whole group
    )
    while not list(store.glob(".locks/*")):  # it has begun to work
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    last = said.strip().splitlines()[-1]
    assert last == (
        "rebasin: stopped; all that was finished is stored, the same command goes on from there"
    )
    assert "Traceback" not in said
    assert not list(store.glob("dense/*"))
    small = [*run, "--quiet", "--set", "sparse.sparsities=[]", "--set", "imp.prune_b=false"]
    assert rebasin(*small).returncode == 0


def test_a_plan_of_several_studies_has_a_grand_total():
    printed = rebasin("plan", "--preset", "paper-table15", "--pace", "12").stdout
    assert "all 4 studies, what they share counted for each" in printed
    totals = [line for line in printed.splitlines() if line.startswith("total: ")]
    epochs = [int(line.split()[1].replace(",", "")) for line in totals]
    assert len(epochs) == 5
    assert sum(epochs[:4]) == epochs[4]
    assert "one worker needs" in totals[4]


def test_a_twin_differs_in_what_the_released_code_does_otherwise_alone():
    twins = [name for name in PRESETS if name.endswith("-as-released")]
    assert len(twins) > 5
    for name in twins:
        parts = {field.split(".")[0] for field in differences(name)}
        if name.startswith("sign-paper"):
            assert "data" in parts, name
            assert parts <= {"data", "model"}, name
            continue
        recipes = {"dense", "imp", "sparse"} if "imagenet" in name else set()
        assert parts == {"as_released", *recipes}, name
    assert differences("paper-vgg11-w1-cifar10-as-released")["as_released.stream_tap"][1] == (
        "released_code"
    )
    assert differences("pocket").keys() >= {"model.name"}  # its residual nets, from its first


def test_presets_say_how_they_differ_when_asked():
    short, long = rebasin("presets"), rebasin("presets", "--verbose")
    assert "as_released.stream_tap" not in short.stdout
    assert "    as_released.stream_tap: 'released_code' (there " in long.stdout
    assert [line for line in long.stdout.splitlines() if not line.startswith(" ")] == (
        short.stdout.splitlines()
    )
