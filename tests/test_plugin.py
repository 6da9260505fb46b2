"""A stage and a chapter from outside the package are found, run, resumed and shown like its own."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import norms_plugin
import pandas as pd
import pytest

from rebasin_utils.chapters import gallery
from rebasin_utils.errors import InputError
from rebasin_utils.running import costs
from rebasin_utils.running.runner import run
from rebasin_utils.study import inventory, plugins
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.study import Study

PAGE = Path(__file__).parents[1] / "docs" / "stages-and-chapters.md"


@pytest.fixture(scope="module")
def with_norms(finished: Study, tmp_path_factory) -> Study:
    """The finished study with one stage more, computed by two fresh workers."""
    root = tmp_path_factory.mktemp("plugin") / "store"
    shutil.copytree(finished.store.root, root)
    study = Study(finished.settings.with_values(plugins=("norms_plugin",)), root)
    assert {node.stage for node in study.missing()} == {"norms"}
    assert run(study, workers=2, quiet=True) == 2
    return study


def test_the_stage_is_computed_on_workers_that_never_heard_of_it(with_norms, finished):
    table = norms_plugin.table(with_norms)
    assert len(table) == finished.settings.seeds
    for row in table.itertuples():
        for role in "AB":
            state = finished.state(finished.node("dense", role=role, seed=row.seed))
            square = sum(float((w**2).sum()) for w in state.values())
            assert getattr(row, role) ** 2 == pytest.approx(square)


def test_a_run_that_was_killed_in_it_goes_on(with_norms, tmp_path, monkeypatch):
    shutil.copytree(with_norms.store.root, tmp_path / "copy")
    study = Study(with_norms.settings, tmp_path / "copy")
    shutil.rmtree(study.store.root / "norms")
    real, begun = norms_plugin.Norms.compute, []

    def dies_at_the_second(stage, context, nodes):
        for made in real(stage, context, nodes):
            if begun:
                raise KeyboardInterrupt
            begun.append(made.node)
            yield made

    with monkeypatch.context() as patch:
        patch.setattr(norms_plugin.Norms, "compute", dies_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            run(study, workers=1, quiet=True)
    assert [node for node in study.nodes("norms") if node.key in study.store] == begun
    assert run(study, workers=1, quiet=True) == 1
    pd.testing.assert_frame_equal(norms_plugin.table(study), norms_plugin.table(with_norms))


def test_it_is_in_the_plan_the_status_and_the_list_of_the_store(with_norms):
    by_stage = {c.stage: c for c in costs.of_study(with_norms.settings, with_norms.store, "cpu")}
    assert (by_stage["norms"].artifacts, by_stage["norms"].done) == (2, 2)
    listed = [entry.stage for entry in inventory.entries(with_norms.store)]
    assert listed.count("norms") == 2
    assert inventory.unneeded(with_norms.store, [with_norms.settings]) == []


def test_its_chapter_is_in_the_gallery_and_among_the_verdicts(with_norms, finished, tmp_path):
    gallery.draw_all([with_norms], tmp_path)
    assert {p.suffix for p in tmp_path.glob("tiny-norms.*")} == {".png", ".html", ".csv"}
    headings = [heading for heading, _ in gallery.verdicts([with_norms])]
    assert "tiny, norms" in headings
    assert "tiny, norms" not in [heading for heading, _ in gallery.verdicts([finished])]


def test_its_settings_are_checked_travel_and_enter_the_keys(with_norms):
    settings = with_norms.settings.with_values(**{"norms.order": 1})
    assert Settings.model_validate_json(settings.model_dump_json()) == settings
    other = Study(settings, with_norms.store)
    assert {node.stage for node in other.missing()} == {"norms"}
    with pytest.raises(InputError, match=r"norms\.order = 'two': must be a valid integer"):
        settings.with_values(**{"norms.order": "two"})
    with pytest.raises(InputError, match=r"norms\.ordr = 1: no such setting; .*norms\.order"):
        settings.with_values(**{"norms.ordr": 1})


def test_a_plugin_that_is_not_there_is_said(finished):
    with pytest.raises(InputError, match="plugins = 'no_such_plugin': cannot be imported"):
        finished.settings.with_values(plugins=("no_such_plugin",))


def test_a_stage_that_is_there_already_is_refused(finished, monkeypatch):
    monkeypatch.setattr(norms_plugin.Norms, "name", "dense")
    with pytest.raises(InputError, match="brings 'dense', which is there already"):
        finished.settings.with_values(plugins=("norms_plugin", "norms_plugin"))


def test_the_page_on_writing_a_stage_shows_this_one():
    shown = "\n\n\n".join(re.findall(r"```python\n(.*?)\n```", PAGE.read_text(), re.DOTALL))
    assert shown == Path(norms_plugin.__file__).read_text().rstrip()


def test_an_installed_plugin_is_found_by_its_entry_point(finished, monkeypatch):
    class Installed:
        def load(self):
            return norms_plugin

    asked = []
    monkeypatch.setattr(plugins, "entry_points", lambda group: asked.append(group) or [Installed()])
    plugins.forget()
    try:
        study = Study(finished.settings.with_values(**{"norms.order": 1}), finished.store)
        assert {node.stage for node in study.missing()} == {"norms"}
        assert "90-how-long" in plugins.chapters()
    finally:
        monkeypatch.undo()
        plugins.forget()
    assert set(asked) == {"rebasin"}
    assert "norms" not in plugins.stages()
