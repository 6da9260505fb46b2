"""Differences are paired, intervals are what statistics says, and nothing is averaged silently."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_results import SPREAD, made_up
from scipy import stats

from rebasin_utils.chapters import evidence
from rebasin_utils.chapters.judgement import judge
from rebasin_utils.errors import InputError
from rebasin_utils.study.parts import METHODS, SPARSE_METHODS

# -------------------------------------------------------------------------- intervals, pairs


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12))
@settings(deadline=None)
def test_the_interval_is_the_ninety_five_percent_t_interval(values):
    mean, low, high = evidence.interval(values)
    assert mean == pytest.approx(np.mean(values), abs=1e-9)
    if np.std(values) > 1e-6:
        expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-6)


def test_one_value_has_an_interval_without_ends():
    assert evidence.interval([3.0]) == (3.0, -math.inf, math.inf)


def test_a_paired_difference_does_not_see_what_the_pairs_share():
    table = evidence.paired_difference(made_up(SPREAD), "permuted", "naive")
    assert len(table) == 2 * 3
    assert (table["n"] == 4).all()
    assert (table["high"] - table["low"] < 1.5).all()  # the pairs themselves are 9 points apart
    assert ((table["low"] < 2.0) & (table["high"] > 2.0)).mean() >= 5 / 6
    assert (table["low"] > 0).all()


def test_a_paired_difference_is_the_t_test_on_the_pairs():
    results = made_up(SPREAD)
    table = evidence.paired_difference(results, "lth", "random_mask").set_index(
        ["sparsity", "rewind_epoch"]
    )
    for (s, k), row in table.iterrows():
        cell = results[(results["sparsity"] == s) & (results["rewind_epoch"] == k)]
        by_seed = cell.pivot(index="seed", columns="method", values="test_accuracy") * 100
        test = stats.ttest_rel(by_seed["lth"], by_seed["random_mask"])
        expected = test.confidence_interval(0.95)
        assert row["difference"] == pytest.approx((by_seed["lth"] - by_seed["random_mask"]).mean())
        assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))


def test_a_difference_and_its_opposite_are_mirror_images():
    one = evidence.paired_difference(made_up(SPREAD), "lth", "naive")
    other = evidence.paired_difference(made_up(SPREAD), "naive", "lth")
    assert np.allclose(one["difference"], -other["difference"])
    assert np.allclose(one["low"], -other["high"])


def test_a_pair_that_lacks_a_run_is_left_out_of_its_cell():
    results = made_up(SPREAD)
    lost = (results["method"] == "naive") & (results["seed"] == 2) & (results["rewind_epoch"] == 1)
    table = evidence.paired_difference(results[~lost], "permuted", "naive")
    assert table.set_index("rewind_epoch")["n"].to_dict() == {0: 4, 1: 3, 5: 4}
    assert table.loc[table["rewind_epoch"] == 1, "difference"].between(1.5, 2.5).all()


def test_the_order_of_the_rows_does_not_matter():
    results = made_up(SPREAD)
    shuffled = results.sample(frac=1, random_state=0)
    for table in (
        lambda r: evidence.paired_difference(r, "lth", "naive"),
        evidence.accuracy_grid,
    ):
        pd.testing.assert_frame_equal(table(results), table(shuffled))


def test_comparing_what_is_not_there_is_refused():
    with pytest.raises(InputError, match="no runs of 'random_mask'"):
        evidence.paired_difference(made_up({"lth": 1.0, "naive": 0.0}), "lth", "random_mask")


# -------------------------------------------------------------------------- means


def test_the_grid_holds_the_means_over_pairs_in_the_order_of_the_methods():
    results = made_up(SPREAD)
    grid = evidence.accuracy_grid(results)
    assert list(grid.columns) == [m for m in METHODS if m in SPARSE_METHODS]
    assert list(grid.index) == [(s, k) for s in (0.8, 0.9) for k in (0, 1, 5)]
    for (s, k), row in grid.iterrows():
        for method in SPREAD:
            cell = results[
                (results["sparsity"] == s)
                & (results["rewind_epoch"] == k)
                & (results["method"] == method)
            ]
            assert row[method] == pytest.approx(100 * cell["test_accuracy"].mean())


def test_a_summary_has_the_sample_standard_deviation():
    results = made_up(SPREAD)
    table = evidence.summary(results, by=["method", "sparsity", "rewind_epoch"])
    for row in table.itertuples():
        cell = results[
            (results["sparsity"] == row.sparsity)
            & (results["rewind_epoch"] == row.rewind_epoch)
            & (results["method"] == row.method)
        ]
        accuracies = 100 * cell["test_accuracy"].to_numpy()
        assert (row.mean, row.n) == (pytest.approx(accuracies.mean()), 4)
        assert row.std == pytest.approx(accuracies.std(ddof=1))


def test_the_gap_that_permuting_closes_is_its_share_of_the_way_from_naive_to_lth():
    results = made_up(SPREAD, noise=0.0)
    assert evidence.gap_closed(results, "permuted", 0.9) == pytest.approx(0.5)
    assert evidence.gap_closed(results, "lth", 0.9) == pytest.approx(1)
    assert evidence.gap_closed(results, "naive", 0.9) == pytest.approx(0)


def test_diverged_runs_are_left_out_with_a_warning_and_not_averaged_in():
    results = made_up(SPREAD)
    wild = (results["method"] == "naive") & (results["seed"] == 1)
    spoilt = results.assign(diverged=wild, test_accuracy=results["test_accuracy"].where(~wild, 0.1))
    without = results[~wild]
    for table in (
        lambda r: evidence.paired_difference(r, "permuted", "naive"),
        lambda r: evidence.summary(r, by=["method"]),
        evidence.accuracy_grid,
    ):
        with pytest.warns(UserWarning, match="6 diverged runs"):
            found = table(spoilt)
        pd.testing.assert_frame_equal(found, table(without))


def test_runs_of_different_nets_are_not_averaged():
    both = pd.concat([made_up(SPREAD), made_up(SPREAD, width=4)], ignore_index=True)
    for table in (
        lambda r: evidence.paired_difference(r, "permuted", "naive"),
        evidence.accuracy_grid,
    ):
        with pytest.raises(InputError, match="several studies"):
            table(both)


def test_the_gaps_of_a_cell_are_paired_by_seed():
    results = made_up(SPREAD)
    table = evidence.gaps(results, 0.9, 1)
    cell = results[(results["sparsity"] == 0.9) & (results["rewind_epoch"] == 1)]
    by_seed = 100 * cell.pivot(index="seed", columns="method", values="test_accuracy")
    assert list(table.columns) == ["permuted − naive", "LTH − permuted"]
    assert np.allclose(table["permuted − naive"], by_seed["permuted"] - by_seed["naive"])
    assert np.allclose(table["LTH − permuted"], by_seed["lth"] - by_seed["permuted"])


def test_there_are_no_gaps_where_the_runs_are_lacking():
    assert evidence.gaps(made_up(SPREAD), 0.7, 1).empty
    assert evidence.gaps(made_up(SPREAD), 0.9, 2).empty
    assert evidence.gaps(made_up({"lth": 4.0, "naive": 0.0}), 0.9, 1).empty


# -------------------------------------------------------------------------- what is said of a claim


def test_a_row_says_what_the_rule_says_of_its_differences():
    differences = {"k=1": [1.0, 1.2, 0.9, 1.1], "k=2": [2.0, 2.4, 1.9, 2.1]}
    verdict = judge(differences, "more")
    claim, paper, ours, n, said = evidence.row("it is so", "1 pp", "a − b: ", differences)
    assert (claim, paper, n, said) == ("it is so", "1 pp", 4, "holds")
    assert ours == f"a − b: {verdict.differences}"
    close = {"all": [0.1, -0.1, 0.2, 0.0]}
    assert [evidence.row("", "", "", close, kind)[-1] for kind in ("same", "no worse")] == 2 * [
        "holds"
    ]
    assert evidence.row("", "", "", close, spread="any")[-1].startswith("open")
