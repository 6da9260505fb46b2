"""What every notebook begins with: studies from parameters that were checked."""

from __future__ import annotations

import pandas as pd
import pytest

from rebasin_utils.chapters import lab
from rebasin_utils.errors import InputError
from rebasin_utils.paths import project_root
from rebasin_utils.study import presets


def test_zero_and_nothing_are_the_presets_own(tmp_path):
    for name in ("smoke", "smoke-widths", "pocket"):
        studies = lab.open_studies(
            name, seeds=0, width=0, changes="", store=str(tmp_path / "store")
        )
        assert [study.settings for study in studies] == list(presets.preset(name))
        assert {study.store.root for study in studies} == {tmp_path / "store"}
    assert not (tmp_path / "store").exists()


def test_parameters_are_settings(tmp_path):
    changes = "dense.epochs=5 data.pool=4 'sparse.sparsities=[0.5, 0.9]' name=other"
    (study,) = lab.open_studies(
        "smoke", seeds=3, width=2, changes=changes, store=str(tmp_path / "store")
    )
    s = study.settings
    assert (s.seeds, s.model.width, s.name) == (3, 2, "other")
    assert (s.dense.epochs, s.data.pool, s.sparse.sparsities) == (5, 4, (0.5, 0.9))


def test_studies_that_a_parameter_makes_equal_are_one(tmp_path):
    assert len(lab.open_studies("smoke-widths", width=4, store=str(tmp_path))) == 1


def test_the_default_store_is_that_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_STORE", str(tmp_path / "mine"))
    (study,) = lab.open_studies("smoke")
    assert study.store.root == tmp_path / "mine"
    assert not (tmp_path / "mine").exists()
    monkeypatch.setenv("REBASIN_STORE", "")
    (study,) = lab.open_studies("smoke")
    assert study.store.root == project_root() / "runs" / "store"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"preset": 3}, "preset = 3: must be a str"),
        ({"preset": "pokcet"}, "preset = 'pokcet': choose one of smoke"),
        ({"seeds": None}, "seeds = None: must be a int"),
        ({"seeds": "3"}, "seeds = '3': must be a int"),
        ({"seeds": 2.5}, "seeds = 2.5: must be a int"),
        ({"seeds": -1}, "seeds = -1: must be greater than or equal to 1"),
        ({"width": "2"}, "width = '2': must be a int"),
        ({"width": 65}, "model.width = 65: must be less than or equal to 64"),
        ({"changes": None}, "changes = None: must be a str"),
        ({"changes": "dense.lr"}, "'dense.lr': write it as name=value"),
        ({"changes": "dense.lrr=3"}, "dense.lrr = 3: no such setting; there are dense.epochs"),
        ({"changes": "pool=2"}, "pool = 2: this setting is now called data.pool"),
        ({"changes": "'dense.lr=3"}, "changes = "),
        ({"store": None}, "store = None: must be a str"),
        ({"device": "abacus"}, "device = 'abacus': not available"),
    ],
)
def test_a_wrong_parameter_is_one_sentence(tmp_path, values, sentence):
    with pytest.raises(InputError) as raised:
        lab.open_studies(**{"preset": "smoke", "store": str(tmp_path / "store")} | values)
    assert str(raised.value).startswith(sentence)
    assert not (tmp_path / "store").exists()


def test_a_table_is_shown_whole_with_sparsities_as_per_cent():
    table = pd.DataFrame({"claim": ["x" * 200], "n": [2]})
    assert "x" * 200 in lab.as_html(table).data
    index = pd.MultiIndex.from_tuples([(0.9, 1)], names=["sparsity", "rewind_epoch"])
    page = lab.as_html(pd.DataFrame({"lth": [81.234]}, index=index), digits=1).data
    assert "90%" in page
    assert "81.2<" in page


def test_the_provenance_names_the_study_and_the_versions(tmp_path, capsys):
    (study,) = lab.open_studies("smoke", store=str(tmp_path))
    lab.show_provenance(study)
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("smoke: mlp×1 on fashion-mnist-10k, 2 pairs, 2 epochs; device ")
    assert last.startswith("rebasin ")
