"""Bad input of every kind: one sentence, exit code 2, no traceback, and nothing written."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from command import Finished, rebasin

from rebasin_utils.nets import data
from rebasin_utils.running import cluster
from rebasin_utils.study.settings import MOVED

RUN = ["run", "--preset", "smoke"]


def setting(text: str) -> list[str]:
    return [*RUN, "--set", text]


def notebook(*words: str) -> list[str]:
    return ["notebooks", "run", *words, "--folder", "{tmp}/pages"]


SETTINGS = [
    ("seeds=0", "seeds = 0: must be greater than or equal to 1"),
    ("seeds=many", "seeds = 'many': must be a valid integer"),
    ("seeds=2.5", "seeds = 2.5: must be a valid integer"),
    ("seeds=99999999999999999999", "must be less than or equal to 1000"),
    ("seeds=1e999", "seeds = inf: must be a finite number"),
    ("seeds=null", "seeds = None: must be a valid integer"),
    ("seeds={}", "seeds = {}: must be a valid integer"),
    ("seeds", "'seeds': write it as name=value"),
    ("=3", "'=3': write it as name=value"),
    ("sede=3", "sede = 3: no such setting; there are name, seeds, first_seed, plugins, data."),
    ("__class__=3", "__class__ = 3: no such setting"),
    ("seeds.x=3", "seeds.x = 3: no such setting"),
    (".=3", ". = 3: no such setting"),
    (".seeds=3", ".seeds = 3: no such setting"),
    ("data.=3", "data. = 3: no such setting; there are data.source, data.pool"),
    ("sparse.sparsities.x=3", "sparse.sparsities.x = 3: no such setting; there are sparse.lr"),
    ("sparse.sparsities=[1.0]", "sparse.sparsities[0] = 1.0: must be less than 1"),
    ("sparse.sparsities=[-0.1]", "sparse.sparsities[0] = -0.1: must be greater than"),
    ("sparse.sparsities=[NaN]", "sparse.sparsities[0] = nan: must be"),
    ("sparse.sparsities=π", "sparse.sparsities = 'π': must be a valid tuple"),
    ("sparse.sparsities=[0.5,0.5]", "sparse.sparsities = [0.5, 0.5]: every value must occur once"),
    ("sparse.rewind_epochs=[99]", "sparse.rewind_epochs = 99: must be below"),
    ("closer_look.match_epochs=[99]", "closer_look.match_epochs = 99: must be below"),
    ("sparse.methods=[\"lht\"]", "sparse.methods[0] = 'lht': must be 'lth', 'naive'"),
    ("sparse=3", "sparse = 3: must be"),
    ("paths.alphas=[0.5]", "paths.alphas = [0.5]: must go from 0 to 1"),
    ("dense.lrr=3", "dense.lrr = 3: no such setting; there are dense.epochs, dense.lr"),
    ("imp.lrr=3", "imp.lrr = 3: no such setting; there are imp.epochs, imp.lr"),
    ("imp.prune_b=maybe", "imp.prune_b = 'maybe': must be a valid boolean"),
    ("dense.lr=-1", "dense.lr = -1: must be greater than 0"),
    ("dense.lr=NaN", "dense.lr = nan: must be"),
    ('dense={"epochs": 1}', "dense.lr: this setting is required"),
    ('dense={"epochs": 1, "lr": 0.1, "lrr": 2}', "dense.lrr = 2: no such setting; there are"),
    ("dense=3", "dense = 3: must be"),
    ("dense.batch_size=1000000000000000000", "there are 512 training images"),
    ("data={}", "data.source: this setting is required"),
    ("data.source=mnist", "data.source = 'mnist': choose one of fashion-mnist-10k"),
    ("data.source=/etc/passwd", "data.source = '/etc/passwd': must be a folder of"),
    ("data.source=[]", "data.source = []: must be a valid string"),
    ("model=lenet", "model = 'lenet': "),
    ("model.name=lenet", "model.name = 'lenet': choose one of mlp, resnet8"),
    ("model.width=65", "model.width = 65: must be less than or equal to 64"),
    ("data.pool=3", "pool = 3: must divide the image side, 28 pixels"),
    ("plugins=no.such", "plugins = 'no.such': "),
    ('plugins=["no.such"]', "plugins = 'no.such': cannot be imported (No module named 'no')"),
    ("name=../../etc", "name = '../../etc': String should match pattern"),
    ("name=Über", "name = 'Über': String should match pattern"),
]  # fmt: skip

COMMANDS = [
    (["run", "--preset", "nonsense"], "preset = 'nonsense': choose one of smoke, smoke-w"),
    (["run", "--preset", "../smoke"], "preset = '../smoke': choose one of smoke, smoke-w"),
    (["plan", "--preset", ""], "preset = '': choose one of smoke, smoke-w"),
    (["plan", "--set", "seeds=-1"], "seeds = -1: must be greater than or equal to 1"),
    (["status", "--store", "{tmp}", "--device", "abacus"], "device = 'abacus': not available"),
    ([*RUN, "--workers", "0"], "workers = 0: must be at least 1"),
    ([*RUN, "--workers", "-3"], "workers = -3: must be at least 1"),
    ([*RUN, "--workers", "1000000"], "workers = 1000000: must be at least 1, and at most 1024"),
    ([*RUN, "--device", "abacus"], "device = 'abacus': not available here"),
    ([*RUN, "--device", "cuda:99"], "device = 'cuda:99': not available here"),
    ([*RUN, "--store", "{tmp}/file/store"], "store = {tmp}/file/store: cannot be written"),
    ([*RUN, "--store", "/proc/store"], "store = /proc/store: cannot be written"),
    ([*RUN, "--cluster", "mars"], "cluster = 'mars': choose none, local, a YAML file"),
    ([*RUN, "--cluster", "{tmp}/no.yaml"], "no.yaml': No such file or directory; choose none"),
    ([*RUN, "--cluster", "tcp://127.0.0.1:9"], "no scheduler answers there"),
    ([*RUN, "--cluster", "none", "--workers", "2"], "workers = 2: only goes with cluster"),
    (["results", "--store", "{tmp}", "--preset", "no"], "preset = 'no': choose one of smoke, sm"),
    (["verdict", "--store", "{tmp}", "--set", "width=2"], "is now called model.width"),
    (["store", "prune", "--store", "{tmp}", "--keep", "nothing"], "preset = 'nothing': choose one"),
]  # fmt: skip

NOTEBOOKS = [
    (notebook("99"), "notebook = '99': choose one of 01-toy"),
    (notebook("../../etc/passwd"), "notebook = '../../etc/passwd': choose one of"),
    (["notebooks", "run", "04", "-p", "seeds"], "-p: takes two words, as in -p seeds 3"),
    (notebook("04", "-p", "sparsty", "0.9"), "sparsty = 0.9: 04-naive-permuted-lth has no such"),
    (notebook("04", "-p", "sparsity", "true"), "sparsity = True: 04-naive-permuted-lth expects"),
    (notebook("04", "-p", "sparsity", "high"), "sparsity = 'high': 04-naive-permuted-lth expects"),
    (notebook("04", "-p", "sparsity", "1.0"), "sparsity = 1.0: must be less than 1"),
    (notebook("04", "-p", "sparsity", "NaN"), "sparsity = nan: must be"),
    (notebook("04", "-p", "seeds", "-1"), "seeds = -1: must be greater than or equal to 0"),
    (notebook("04", "-p", "seeds", "1001"), "seeds = 1001: must be less than or equal to 1000"),
    (notebook("04", "-p", "seeds", "2.5"), "seeds = 2.5: 04-naive-permuted-lth expects int, as in"),
    (notebook("04", "-p", "seeds", "None"), "seeds = None: 04-naive-permuted-lth expects int, as"),
    (notebook("04", "-p", "width", "-1"), "width = -1: must be greater than or equal to 0"),
    (notebook("04", "-p", "width", "65"), "width = 65: must be less than or equal to 64"),
    (notebook("05", "-p", "width", "2"), "width = 2: 05-width has no such parameter"),
    (notebook("04", "-p", "changes", "5"), "changes = 5: 04-naive-permuted-lth expects str"),
    (notebook("04", "-p", "changes", "dense.lr"), "'dense.lr': write it as name=value"),
    (notebook("04", "-p", "preset", "pokcet"), "preset = 'pokcet': choose one of smoke, smoke-w"),
    (notebook("04", "-p", "store", "7"), "store = 7: 04-naive-permuted-lth expects str"),
    (notebook("04", "-p", "seeds", "2", "-p", "seeds", "3"), "seeds = '2': given twice"),
    (notebook("04", "-p", "seeds", "2", "-g", "seeds", "3,4"), "seeds: give it one value or"),
    (notebook("04", "-g", "seeds", "3,x"), "seeds = 'x': 04-naive-permuted-lth expects"),
    (notebook("04", "-g", "sparsity", "0.9,"), "sparsity = '': 04-naive-permuted-lth expects"),
    (notebook("04", "--cluster", "venus"), "cluster = 'venus': choose none, local"),
]  # fmt: skip

SLURM = "kind: slurm\njobs: 1\nmemory: 4GiB\nwalltime: '01:00:00'\n"
CLUSTERS = [
    ("", "must have a line kind: local or kind: slurm"),
    ("- kind: slurm", "must have a line kind: local or kind: slurm"),
    ("kind: [slurm", "no YAML (while parsing a flow sequence"),
    (b"\xff\xfe\x00kind", "no YAML ("),
    ("kind: !!python/object/apply:os.system ['touch {tmp}/pwned']", "no YAML ("),
    ("kind: pbs", "kind = 'pbs': choose local or slurm"),
    ("kind: 7", "kind = 7: choose local or slurm"),
    ("kind: local", "workers: must be given"),
    ("kind: local\nworkers: 0", "workers = 0: must be greater than or equal to 1"),
    ("kind: local\nworkers: 2\nmemory: much", "memory = 'much': must be at least 100 MB"),
    ("kind: local\nworkers: 2\nmemory: 1kB", "memory = '1kB': must be at least 100 MB"),
    ("kind: local\nworkers: 2\njobs: 2", "jobs = 2: no such field; there are allowed_failures"),
    ("kind: local\nworkers: 2\nallowed_failures: -1", "allowed_failures = -1: must be greater"),
    ("kind: slurm\njobs: 2\nwalltime: '01:00:00'", "memory: must be given"),
    (SLURM.replace("1\n", "many\n", 1), "jobs = 'many': must be a valid integer"),
    (SLURM.replace("1\n", "10000000000\n", 1), "jobs = 10000000000: must be less than"),
    (SLURM.replace("'01:00:00'", "1:00:00"), "walltime = 3600: must be hours:minutes:seconds in"),
    (SLURM.replace("01:00:00", "one hour"), "walltime = 'one hour': must be hours:minutes:seconds"),
    (SLURM.replace("01:00:00", "00:00:10"), "walltime = '00:00:10': must be at least a minute"),
    (SLURM + "interface: moon", "cluster: 'moon' is not a valid network interface"),
    (SLURM + "gpus: 65", "gpus = 65: must be less than or equal to 64"),
    (SLURM + "gpu: 1", "gpu = 1: no such field; there are"),
    (SLURM + "partition: 'a; rm -rf ~'", "partition = 'a; rm -rf ~': String should match"),
    (SLURM + 'directives: ["-x\\nrm -rf ~"]', "directives.0 = '-x\\nrm -rf ~': must be a single"),
    (SLURM + "prologue: module load x", "prologue = 'module load x': must be a valid tuple"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, no data sets beside ours, and a store and a folder of data of this test's own."""
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("REBASIN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("REBASIN_STORE", str(tmp_path / "store"))
    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "nowhere")
    monkeypatch.setattr(cluster, "PATIENCE", 0.3)
    data._read.cache_clear()


def refused(arguments: list[str], sentence: str, tmp_path: Path) -> Finished:
    """Call the command and check all that must hold of whatever is refused."""
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    said = rebasin(*(word.replace("{tmp}", str(tmp_path)) for word in arguments))
    assert said.returncode == 2
    assert sentence.replace("{tmp}", str(tmp_path)) in said.stderr
    assert said.stderr.startswith("rebasin: ")
    assert len(said.stderr.strip().splitlines()) == 1
    assert said.stdout == ""
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before
    return said


@pytest.mark.parametrize(("text", "sentence"), SETTINGS)
def test_a_bad_setting_is_refused(tmp_path: Path, text: str, sentence: str):
    refused(setting(text), sentence, tmp_path)


@pytest.mark.parametrize("old", MOVED)
def test_a_setting_that_had_another_name_is_told_by_its_new_one(tmp_path: Path, old: str):
    refused(setting(f"{old}=1"), f"{old} = 1: this setting is now called {MOVED[old]}", tmp_path)


READING = (
    ["plan"], ["status"], ["results"], ["verdict"],
    ["store", "list"], ["store", "verify"], ["store", "prune"],
)  # fmt: skip


@pytest.mark.parametrize("command", READING, ids=" ".join)
@pytest.mark.parametrize("by", ["option", "variable"])
def test_a_store_that_is_not_there_is_not_read_nor_made(
    tmp_path: Path, monkeypatch, command: list[str], by: str
):
    sentence = "store = {tmp}/none: there is no such folder"
    if by == "variable":
        monkeypatch.setenv("REBASIN_STORE", str(tmp_path / "none"))
        refused(command, sentence, tmp_path)
    else:
        refused([*command, "--store", "{tmp}/none"], sentence, tmp_path)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_a_file_is_not_read_as_a_store(tmp_path: Path, command: list[str]):
    refused([*command, "--store", "{tmp}/file"], "{tmp}/file: there is no such folder", tmp_path)


def test_a_verdict_on_what_was_not_computed_is_refused(tmp_path: Path):
    (tmp_path / "store").mkdir()
    refused(["verdict", "--preset", "smoke"], "is not computed yet: run the study", tmp_path)
    assert not list((tmp_path / "store").iterdir())


@pytest.mark.parametrize(("arguments", "sentence"), COMMANDS)
def test_a_bad_option_is_refused(tmp_path: Path, arguments: list[str], sentence: str):
    refused(arguments, sentence, tmp_path)


@pytest.mark.parametrize(("arguments", "sentence"), NOTEBOOKS)
def test_a_bad_parameter_of_a_notebook_is_refused(
    tmp_path: Path, arguments: list[str], sentence: str
):
    refused(arguments, sentence, tmp_path)
    assert not (tmp_path / "pages").exists()


@pytest.mark.parametrize(("content", "sentence"), CLUSTERS)
def test_a_bad_description_of_a_cluster_is_refused(
    tmp_path: Path, content: str | bytes, sentence: str
):
    raw = (
        content if isinstance(content, bytes) else content.replace("{tmp}", str(tmp_path)).encode()
    )
    (tmp_path / "cluster.yaml").write_bytes(raw)
    refused([*RUN, "--cluster", "{tmp}/cluster.yaml"], sentence, tmp_path)


def test_a_machine_without_slurm_is_said(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "cluster.yaml").write_text(SLURM)
    refused([*RUN, "--cluster", "{tmp}/cluster.yaml"], "there is no Slurm here", tmp_path)


def no_folder(folder: Path) -> None:
    pass


def a_file_in_its_place(folder: Path) -> None:
    folder.write_text("not a folder")


def an_empty_folder(folder: Path) -> None:
    (folder / "FashionMNIST" / "raw").mkdir(parents=True)


def files_of_rubbish(folder: Path) -> None:
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{split}-{kind}-ubyte").write_bytes(b"rubbish")
            (raw / f"{split}-{kind}-ubyte.gz").write_bytes(gzip.compress(b"rubbish"))


@pytest.mark.parametrize(
    "spoil", [no_folder, a_file_in_its_place, an_empty_folder, files_of_rubbish]
)
@pytest.mark.parametrize("dataset", ["fashion-mnist", "cifar10", "svhn"])
def test_a_bad_folder_of_data_is_refused(tmp_path: Path, spoil, dataset: str):
    spoil(tmp_path / "data")
    said = refused(setting(f"data.source={dataset}"), f"data.source = {dataset!r}: ", tmp_path)
    assert "REBASIN_DATA" in said.stderr


@pytest.mark.parametrize("workers", ["many", "-1", "0", "1.5", ""])
def test_a_bad_variable_of_the_environment_is_refused(tmp_path: Path, monkeypatch, workers: str):
    monkeypatch.setenv("REBASIN_WORKERS", workers)
    refused(RUN, f"workers = {workers}" if workers == "0" else "REBASIN_WORKERS = ", tmp_path)
