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

from rebasin_utils import masks, tables
from rebasin_utils.errors import InputError
from rebasin_utils.settings import METHODS, SPARSE_METHODS

# -------------------------------------------------------------------------- intervals, pairs


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12))
@settings(deadline=None)
def test_the_interval_is_the_ninety_five_percent_t_interval(values):
    mean, low, high = tables.interval(values)
    assert mean == pytest.approx(np.mean(values), abs=1e-9)
    if np.std(values) > 1e-6:
        expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-6)


def test_one_value_has_an_interval_without_ends():
    assert tables.interval([3.0]) == (3.0, -math.inf, math.inf)


def test_a_paired_difference_does_not_see_what_the_pairs_share():
    table = tables.paired_difference(made_up(SPREAD), "permuted", "naive")
    assert len(table) == 2 * 3
    assert (table["n"] == 4).all()
    assert (table["high"] - table["low"] < 1.5).all()  # the pairs themselves are 9 points apart
    assert ((table["low"] < 2.0) & (table["high"] > 2.0)).mean() >= 5 / 6
    assert (table["low"] > 0).all()


def test_a_paired_difference_is_the_t_test_on_the_pairs():
    results = made_up(SPREAD)
    table = tables.paired_difference(results, "lth", "random_mask").set_index(
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
    one = tables.paired_difference(made_up(SPREAD), "lth", "naive")
    other = tables.paired_difference(made_up(SPREAD), "naive", "lth")
    assert np.allclose(one["difference"], -other["difference"])
    assert np.allclose(one["low"], -other["high"])


def test_a_pair_that_lacks_a_run_is_left_out_of_its_cell():
    results = made_up(SPREAD)
    lost = (results["method"] == "naive") & (results["seed"] == 2) & (results["rewind_epoch"] == 1)
    table = tables.paired_difference(results[~lost], "permuted", "naive")
    assert table.set_index("rewind_epoch")["n"].to_dict() == {0: 4, 1: 3, 5: 4}
    assert table.loc[table["rewind_epoch"] == 1, "difference"].between(1.5, 2.5).all()


def test_the_order_of_the_rows_does_not_matter():
    results = made_up(SPREAD)
    shuffled = results.sample(frac=1, random_state=0)
    for table in (
        lambda r: tables.paired_difference(r, "lth", "naive"),
        tables.accuracy_grid,
    ):
        pd.testing.assert_frame_equal(table(results), table(shuffled))


def test_comparing_what_is_not_there_is_refused():
    with pytest.raises(InputError, match="no runs of 'random_mask'"):
        tables.paired_difference(made_up({"lth": 1.0, "naive": 0.0}), "lth", "random_mask")


# -------------------------------------------------------------------------- means


def test_the_grid_holds_the_means_over_pairs_in_the_order_of_the_methods():
    results = made_up(SPREAD)
    grid = tables.accuracy_grid(results)
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
    table = tables.summary(results, by=["method", "sparsity", "rewind_epoch"])
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
    assert tables.gap_closed(results, "permuted", 0.9) == pytest.approx(0.5)
    assert tables.gap_closed(results, "lth", 0.9) == pytest.approx(1)
    assert tables.gap_closed(results, "naive", 0.9) == pytest.approx(0)


def test_diverged_runs_are_left_out_with_a_warning_and_not_averaged_in():
    results = made_up(SPREAD)
    wild = (results["method"] == "naive") & (results["seed"] == 1)
    spoilt = results.assign(diverged=wild, test_accuracy=results["test_accuracy"].where(~wild, 0.1))
    without = results[~wild]
    for table in (
        lambda r: tables.paired_difference(r, "permuted", "naive"),
        lambda r: tables.summary(r, by=["method"]),
        tables.accuracy_grid,
    ):
        with pytest.warns(UserWarning, match="6 diverged runs"):
            found = table(spoilt)
        pd.testing.assert_frame_equal(found, table(without))


def test_runs_of_different_nets_are_not_averaged():
    both = pd.concat([made_up(SPREAD), made_up(SPREAD, width=4)], ignore_index=True)
    for table in (
        lambda r: tables.paired_difference(r, "permuted", "naive"),
        tables.accuracy_grid,
    ):
        with pytest.raises(InputError, match="several studies"):
            table(both)


# -------------------------------------------------------------------------- a real study


def test_the_path_table_holds_what_was_stored(finished):
    table = tables.paths(finished)
    names = {("unmatched", "none"): "unmatched", ("matched", "none"): "matched"}
    names |= {(path, "repair"): f"{path}_repair" for path, _ in list(names)}
    assert set(table["path"]) == set(names.values())
    for split in ("test", "train"):
        table = tables.paths(finished, split)
        for seed in range(2):
            metrics = finished.load(finished.plan.connectivity(seed)).record["metrics"]
            for path in (p for p in metrics["paths"] if p["split"] == split):
                name = names[path["path"], path["correction"]]
                rows = table[(table["path"] == name) & (table["seed"] == seed)]
                assert rows["alpha"].tolist() == metrics["alphas"]
                assert rows["accuracy"].tolist() == [p["accuracy"] for p in path["points"]]
    table = tables.paths(finished)
    middle = tables.midpoints(finished).set_index("path")
    for path, row in middle.iterrows():
        at = table[(table["path"] == path) & (table["alpha"] == 0.5)]["accuracy"]
        assert row["mean"] == pytest.approx(100 * at.mean())
        assert row["n"] == 2


def test_the_pruning_table_begins_dense_and_only_gets_sparser(finished):
    for role in "AB":
        table = tables.rounds(finished, role)
        for seed, rows in table.groupby("seed"):
            assert rows["round"].tolist() == [0, 1, 2, 3, 4]
            assert rows["sparsity"].is_monotonic_increasing
            dense = finished.load(finished.plan.dense(role, seed)).record["metrics"]
            assert rows.iloc[0]["test_accuracy"] == dense["test_accuracy"]


def test_overlaps_compare_tickets_with_bs_own(finished):
    table = tables.overlaps(finished)
    assert len(table) == 2 * 1 * 3
    for seed in range(2):
        own = finished.mask(seed, 0.5, role="B")
        expected = masks.overlap(finished.mask(seed, 0.5), own)
        row = table[(table["seed"] == seed) & (table["kind"] == "mask")]
        assert row["overlap"].item() == expected
    assert table["overlap"].between(0.3, 0.9).all()


def test_a_barrier_is_that_of_its_path(finished):
    table = tables.barriers(finished)
    assert len(table) == 2 * 2 * 4  # splits, pairs, paths
    for row in table.itertuples():
        path = tables.paths(finished, row.split)
        at = path[(path["path"] == row.path) & (path["seed"] == row.seed)]
        line = at["loss"].iloc[0] + at["alpha"] * (at["loss"].iloc[-1] - at["loss"].iloc[0])
        assert row.loss == pytest.approx((at["loss"] - line).max())


def test_the_segments_begin_and_end_in_the_nets_that_their_kind_names(finished):
    table = tables.segments(finished)
    # 2 pairs x (4 rounds + 2 rewind epochs) x 2 corrections
    assert len(table) == 2 * (4 + 2) * 2
    assert set(table["kind"]) == {"dense-imp", "dense-lth"}
    assert (table[["loss", "error"]] >= 0).all(axis=None)
    plan = finished.plan
    node = plan.segment("dense-lth", 1, 0.5, 1)
    assert node.parents == (plan.dense("A", 1), plan.sparse("lth", 0.5, 1, 1))
    points = finished.load(node).record["metrics"]["paths"][0]["points"]
    for point, end in ((points[0], node.parents[0]), (points[-1], node.parents[1])):
        expected = finished.load(end).record["metrics"]["test_accuracy"]
        assert point["accuracy"] == pytest.approx(expected, abs=2e-4)


def test_early_matching_is_held_against_the_runs_of_the_grid(finished):
    table = tables.early_matching(finished)
    results = finished.results().set_index(["method", "sparsity", "rewind_epoch", "seed"])
    assert table["method"].value_counts().to_dict() == {"permuted": 4, "naive": 2, "lth": 2}
    for row in table.itertuples():
        if row.method == "permuted" and row.match_epoch == 1:
            assert 0 < row.agreement < 1
            continue
        cell = (row.method, row.sparsity, 1, row.seed)
        assert row.test_accuracy == results.loc[cell, "test_accuracy"]
        assert row.method != "permuted" or row.agreement == 1


def test_the_ensembles_of_every_method_are_summed_up(finished):
    table = tables.ensembles(finished)
    assert len(table) == 2 * 5
    for row in table.itertuples():
        found = finished.load(finished.plan.diversity(row.method, row.seed)).record["metrics"]
        assert row.accuracy == pytest.approx(50 * sum(found["accuracies"]))
        assert row.disagreement == found["pairs"][0]["disagreement"]
        assert row.n == 2


def test_the_bill_counts_what_the_owner_of_b_trains(finished):
    table = tables.bill(finished)  # 2 epochs, k = 1, IMP of 1 epoch a round, 4 rounds to 50 %
    assert table["mask"].tolist() == ["A's, naive", *["A's, permuted"] * 2, "B's own, by IMP"]
    assert table["match_epoch"].tolist()[1:3] == [1, 2]
    assert table["epochs"].tolist() == [1 + 1, 1 + 1, 2 + 1, 2 + 4 + 1]
