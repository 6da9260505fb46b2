"""The published tables as differences, and ours beside them."""

from __future__ import annotations

import pandas as pd
import pytest

from rebasin_utils.chapters import paper_tables, published
from rebasin_utils.chapters.evidence import paired
from rebasin_utils.errors import InputError


@pytest.fixture(scope="module")
def differences() -> pd.DataFrame:
    return paper_tables.published_differences()


def test_every_published_cell_is_there_once(differences):
    assert set(differences["table"]) == {f"{m}-w{w}-{d}" for m, w, d in published.GRIDS}
    assert not differences.duplicated(["table", "sparsity", "rewind_epoch"]).any()
    for (model, width, data), name in published.GRIDS.items():
        rows = published.table(name).assign(method=lambda t: t["method"].str.lower())
        means = rows.pivot_table("mean", ["sparsity", "rewind_epoch"], "method")
        at = differences[differences["table"] == f"{model}-w{width}-{data}"]
        at = at.set_index(["sparsity", "rewind_epoch"])
        assert at["gain"].to_dict() == pytest.approx((means["permuted"] - means["naive"]).to_dict())
        assert at["lacks"].to_dict() == pytest.approx((means["lth"] - means["permuted"]).to_dict())


def test_the_noise_is_that_of_two_means_of_three_runs(differences):
    rows = published.table("ws_table3_resnet20_w1_cifar10")
    cell = rows[(rows["sparsity"] == 0.9) & (rows["rewind_epoch"] == 10)].set_index("method")
    expected = ((cell["std"]["permuted"] ** 2 + cell["std"]["naive"] ** 2) / 3) ** 0.5
    at = paper_tables.one_table(differences, "resnet20-w1-cifar10")
    at = at[(at["sparsity"] == 0.9) & (at["rewind_epoch"] == 10)]
    assert at["gain_error"].item() == pytest.approx(expected)


def test_a_table_that_was_not_published_is_refused(differences):
    with pytest.raises(InputError, match="table = 'resnet50': choose one of resnet20-w1-cifar10"):
        paper_tables.one_table(differences, "resnet50")


def test_ours_are_paired_and_stand_beside_the_net_that_is_named(finished, differences):
    table = paper_tables.beside([finished], differences)
    assert set(table["k"]) == {1}
    assert set(table["published"]) == {"ResNet20×1, CIFAR-10"}
    gains = paired(finished.results(), "permuted", "naive")
    said = table["permuted − naive"].iloc[0]
    assert float(said.split(" [")[0]) == pytest.approx(gains[0.5, 1].mean(), abs=0.006)


def test_the_figures_say_what_they_show(differences):
    for figure in (paper_tables.gains(differences), paper_tables.gaps_by_width(differences)):
        title, _, below = figure.layout.title.text.partition("<br>")
        assert 20 < len(title) < 82
        assert below
