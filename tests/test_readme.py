"""The README tells the truth: its numbers are those of the committed figures' data."""

import io
import re
import subprocess
from pathlib import Path

import pandas as pd

from rebasin_utils.chapters.evidence import accuracy_grid, gap_closed
from rebasin_utils.paths import project_root
from rebasin_utils.running import cluster
from rebasin_utils.study.presets import PRESETS, changed
from rebasin_utils.study.settings import assignments

ROOT = project_root()
README = (ROOT / "README.md").read_text()


def committed(path: str) -> str:
    """A file as it was committed: `make study` draws the figures of this machine over it."""
    git = ["git", "show", f"HEAD:{path}"]
    shown = subprocess.run(git, cwd=ROOT, capture_output=True, text=True)
    return (ROOT / path).read_text() if shown.returncode else shown.stdout


RESULTS = pd.read_csv(io.StringIO(committed("figures/pocket-mlp-accuracy.csv")))


def test_the_headline_table_is_the_grid_of_the_committed_results():
    rows = re.findall(r"^\| (\d) \| (.*) \|$", README, re.MULTILINE)
    columns = ["lth", "permuted", "naive"]
    expected = accuracy_grid(RESULTS).loc[0.9][columns].round(1)
    assert [int(k) for k, _ in rows] == list(expected.index)
    for k, row in rows:
        assert [float(x) for x in row.split(" | ")] == expected.loc[int(k)].tolist()


def test_the_share_of_the_gap_is_the_one_that_was_measured():
    (share,) = re.findall(r"π closes (\d+)% of the gap between", README)
    assert int(share) == round(100 * gap_closed(RESULTS, "permuted", 0.9))


def test_every_file_and_notebook_that_it_names_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_every_wing_that_it_describes_is_one():
    wings = re.findall(r"^\| `(\w+)/` \|", README, re.MULTILINE)
    folders = {p.parent.name for p in (ROOT / "rebasin_utils").glob("*/__init__.py")}
    assert set(wings) == folders
    assert len(wings) == len(folders)


def test_its_commands_name_presets_and_settings_that_there_are():
    for name in re.findall(r"--preset ([\w-]+)", README):
        assert name in PRESETS
    settings = re.findall(r"--set ([\w.]+)=([^\s`]+)", README)
    assert settings
    for name, value in settings:
        assert changed("pocket", assignments([f"{name}={value}"]))


def test_its_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_its_description_of_a_cluster_is_one(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "slurm.yaml").write_text(text)
    assert cluster.find(tmp_path / "slurm.yaml").gpus == 1


def test_figures_have_a_picture_a_page_and_their_data():
    pictures = sorted(Path(ROOT / "figures").glob("*.png"))
    assert pictures
    for picture in pictures:
        assert picture.with_suffix(".html").is_file()
        assert picture.with_suffix(".csv").is_file()
