"""A verdict follows from the intervals alone; the numbers beside it are the paper's."""

from __future__ import annotations

import warnings

import pandas as pd
import pytest
from made_up_results import SPREAD, made_up

from rebasin_utils.chapters import (
    alignment_cost,
    evidence,
    gallery,
    halfway,
    modes,
    published,
    sparse_claims,
    ticket,
    variance,
    width,
)
from rebasin_utils.chapters.judgement import outcome_of
from rebasin_utils.errors import InputError
from rebasin_utils.study.stages import connectivity, diversity, early_matching, segment


def verdict_of(results: pd.DataFrame, start: str) -> str:
    table = sparse_claims.of_sparse_runs(results)
    (verdict,) = table.loc[table["claim"].str.startswith(start), "verdict"]
    return outcome_of(verdict)


def outcomes(table: pd.DataFrame) -> set[str]:
    return {outcome_of(verdict) for verdict in table["verdict"]}


CLAIM = {
    "permuted > naive": "with the permuted mask B trains",
    "lth >= permuted": "LTH, A with its own mask",
    "k = 0": "from the true init",
    "lth > permuted": "LTH is better",
    "random pi": "permuted at random",
    "random mask": "A's ticket as it is",
}


@pytest.mark.parametrize(
    ("effects", "claim", "verdict"),
    [
        ({"permuted": 2, "naive": 0}, "permuted > naive", "holds"),
        ({"permuted": -2, "naive": 0}, "permuted > naive", "contradicted"),
        ({"permuted": 0, "naive": 0}, "permuted > naive", "open"),
        ({"lth": 2, "permuted": 0}, "lth >= permuted", "holds"),
        ({"lth": 0, "permuted": 0}, "lth >= permuted", "holds"),
        ({"lth": -2, "permuted": 0}, "lth >= permuted", "contradicted"),
        ({"permuted": 2, "naive": 0}, "k = 0", "contradicted"),
        ({"permuted": -2, "naive": 0}, "k = 0", "contradicted"),
        ({"permuted": 0, "naive": 0}, "k = 0", "holds"),
        ({"lth": 2, "permuted": 0}, "lth > permuted", "holds"),
        ({"lth": 0, "permuted": 0}, "lth > permuted", "open"),
        ({"naive": 0, "random_permutation": 0}, "random pi", "holds"),
        ({"naive": 0, "random_permutation": -2}, "random pi", "contradicted"),
        ({"naive": 0, "random_permutation": 2}, "random pi", "contradicted"),
        ({"naive": 0, "random_mask": -2}, "random mask", "holds"),
        ({"naive": 0, "random_mask": 2}, "random mask", "contradicted"),
    ],
)
def test_a_verdict_follows_from_the_intervals(effects, claim, verdict):
    results = made_up(effects, noise=0.4, seeds=8)
    assert verdict_of(results, CLAIM[claim]) == verdict


def test_a_single_pair_decides_nothing():
    for effects in (SPREAD, {m: -e for m, e in SPREAD.items()}):
        assert outcomes(sparse_claims.of_sparse_runs(made_up(effects, seeds=1))) == {"open"}


def test_one_undecided_cell_leaves_a_claim_of_more_open():
    results = made_up({"permuted": 2, "naive": 0}, seeds=8)
    equal = (results["method"] == "permuted") & (results["rewind_epoch"] == 5)
    results.loc[equal, "test_accuracy"] -= 0.02
    assert verdict_of(results, CLAIM["permuted > naive"]) == "open"


def test_one_cell_on_the_wrong_side_is_enough_to_contradict():
    results = made_up({"permuted": 2, "naive": 0}, seeds=8)
    worse = (results["method"] == "permuted") & (results["rewind_epoch"] == 5)
    results.loc[worse, "test_accuracy"] -= 0.05
    assert verdict_of(results, CLAIM["permuted > naive"]) == "contradicted"


def test_a_claim_about_methods_that_were_not_run_is_passed_over():
    table = sparse_claims.of_sparse_runs(made_up({"lth": 4, "permuted": 2, "naive": 0}))
    starts = [CLAIM[c] for c in ("permuted > naive", "lth >= permuted", "lth > permuted", "k = 0")]
    assert len(table) == 4
    assert all(c.startswith(s) for c, s in zip(table["claim"], starts, strict=True))
    assert len(sparse_claims.of_sparse_runs(made_up({"lth": 1.0}))) == 0


def test_a_verdict_quotes_every_rewind_epoch_that_it_speaks_of():
    row = sparse_claims.of_sparse_runs(made_up(SPREAD)).iloc[0]
    assert row["n"] == 4
    assert "k=1:" in row["ours"]
    assert "k=5:" in row["ours"]
    assert "k=0:" not in row["ours"]


def test_a_sparsity_that_was_not_published_is_said_to_be_so():
    results = made_up(SPREAD).assign(sparsity=0.42)
    results = results.drop_duplicates(["method", "rewind_epoch", "seed"])
    said = set(sparse_claims.of_sparse_runs(results, sparsity=0.42)["paper"])
    assert "ResNet20×1, CIFAR-10: nothing at 42%" in said


def test_the_verdicts_of_a_real_study_have_every_claim(finished):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = sparse_claims.of_sparse_runs(finished.results(), sparsity=0.5)
    assert len(table) == 6
    assert (table["n"] == 2).all()
    assert outcomes(table) <= {"holds", "contradicted", "open"}


@pytest.mark.parametrize("of", [halfway.of_paths, ticket.of_overlaps])
def test_the_verdicts_about_paths_and_overlaps_are_of_every_pair(finished, of):
    table = of(finished)
    assert len(table) > 0
    assert (table["n"] == 2).all()
    assert outcomes(table) <= {"holds", "contradicted", "open"}


def test_an_order_of_rows_does_not_change_a_verdict():
    results = made_up(SPREAD)
    shuffled = results.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(
        sparse_claims.of_sparse_runs(results), sparse_claims.of_sparse_runs(shuffled)
    )


def test_a_verdict_over_different_nets_is_refused():
    both = pd.concat([made_up(SPREAD), made_up(SPREAD, width=4)], ignore_index=True)
    with pytest.raises(InputError, match="several studies"):
        sparse_claims.of_sparse_runs(both)


@pytest.mark.parametrize(
    ("by_start", "outcome"),
    [
        ({"lth": (0, 3, 4), "naive": (0, 0, 0)}, {"LTH": "holds", "naive": "holds"}),
        (
            {"lth": (0, -3, -3), "naive": (0, 2, 2)},
            {"LTH": "contradicted", "naive": "contradicted"},
        ),
        ({"lth": (0, 0, 0)}, {"LTH": "open"}),
    ],
)
def test_later_starts_are_judged_from_the_first_to_the_last(by_start, outcome):
    results = made_up(dict.fromkeys(by_start, 0.0), noise=0.3, seeds=8)
    for method, gains in by_start.items():
        for k, gain in zip((0, 1, 5), gains, strict=True):
            at = (results["method"] == method) & (results["rewind_epoch"] == k)
            results.loc[at, "test_accuracy"] += (gain - k) / 100  # instead of a point an epoch
    table = sparse_claims.of_rewinding(results).set_index("claim")["verdict"]
    for method, expected in outcome.items():
        (verdict,) = [
            v
            for claim, v in table.items()
            if claim.startswith((f"{method} rises", f"{method} stays"))
        ]
        assert outcome_of(verdict) == expected


def test_levelling_off_is_a_rise_that_is_larger_at_first():
    for gains, expected in (((0, 3, 4), "holds"), ((0, 1, 4), "contradicted")):
        results = made_up({"permuted": 0.0}, noise=0.3, seeds=8)
        for k, gain in zip((0, 1, 5), gains, strict=True):
            results.loc[results["rewind_epoch"] == k, "test_accuracy"] += (gain - k) / 100
        table = sparse_claims.of_rewinding(results)
        (verdict,) = table.loc[table["claim"].str.contains("levels off"), "verdict"]
        assert outcome_of(verdict) == expected


def test_nothing_is_said_of_later_starts_where_they_are_trained_less():
    results = made_up(SPREAD)
    results["epochs"] = 10 - results["rewind_epoch"].astype(int)
    assert len(sparse_claims.of_rewinding(results)) == 0


def test_the_gap_is_said_to_grow_where_it_is_larger_at_the_higher_sparsity():
    results = made_up({"lth": 1.0, "naive": 0.0}, noise=0.3, seeds=8)
    more = (results["method"] == "lth") & (results["sparsity"] == 0.9)
    for extra, expected in ((0.02, "holds"), (0.0, "open"), (-0.02, "contradicted")):
        changed = results.copy()
        changed.loc[more, "test_accuracy"] += extra
        (verdict,) = sparse_claims.of_sparsities(changed, 5)["verdict"]
        assert outcome_of(verdict) == expected


def test_every_study_is_quoted_beside_the_published_table_of_its_net():
    for net, cell in (
        (
            dict(model="resnet20", width=4, dataset="cifar10"),
            "ResNet20×4, CIFAR-10: +0.57 … +0.84 pp",
        ),
        (dict(model="vgg11", width=1, dataset="cifar10"), "VGG11×1, CIFAR-10: +0.63 … +1.21 pp"),
        (dict(model="mlp", width=1, dataset="fashion-mnist-10k"), "ResNet20×1, CIFAR-10: "),
    ):
        quoted = sparse_claims.of_sparse_runs(made_up(SPREAD, **net)).iloc[0]["paper"]
        assert quoted.startswith(cell)


# -------------------------------------------------------------------------- published numbers

#: Smallest and largest permuted − naive and LTH − permuted over the rewind epochs from 10 on, as
#: section 2 of the protocol reads the tables.
RANGES = {
    "ws_table3_resnet20_w1_cifar10": {
        0.80: (0.10, 0.82, 1.1, 1.8), 0.90: (0.67, 1.22, 1.3, 1.9),
        0.95: (0.95, 1.54, 2.1, 2.5), 0.97: (0.37, 1.31, 2.5, 3.1),
    },
    "ws_table4_resnet20_w4_cifar10": {
        0.80: (0.33, 0.56, 0.4, 0.7), 0.90: (0.57, 0.84, 0.5, 0.9),
        0.95: (0.66, 1.40, 0.4, 1.1), 0.97: (0.98, 2.30, 0.6, 1.2),
    },
    "icml_table7_resnet20_w8_cifar10": {
        0.80: (0.15, 0.32, 0.2, 0.4), 0.90: (0.43, 0.79, 0.1, 0.4),
        0.95: (0.45, 1.00, 0.3, 0.6), 0.97: (0.67, 1.62, 0.2, 0.7),
    },
    "icml_table8_resnet20_w16_cifar10": {
        0.80: (0.08, 0.29, 0.1, 0.2), 0.90: (0.28, 0.47, 0.0, 0.4),
        0.95: (0.55, 0.79, -0.1, 0.2), 0.97: (0.45, 1.53, 0.2, 0.3),
    },
    "icml_table11_resnet20_w1_cifar100": {
        0.80: (0.70, 1.64, 3.0, 3.6), 0.90: (1.01, 2.35, 3.6, 4.6),
        0.95: (1.73, 3.16, 4.1, 4.6), 0.97: (1.95, 3.48, 4.3, 6.0),
    },
    "icml_table12_resnet20_w4_cifar100": {
        0.80: (0.76, 1.14, 1.5, 2.3), 0.90: (1.32, 2.35, 1.9, 2.4),
        0.95: (1.75, 3.46, 2.0, 2.7), 0.97: (2.15, 3.78, 2.1, 2.6),
    },
    "icml_table14_resnet20_w16_cifar100": {
        0.80: (0.55, 0.94, 0.4, 1.9), 0.90: (1.17, 1.67, 0.8, 1.8),
        0.95: (1.23, 2.76, 1.0, 1.8), 0.97: (2.11, 4.10, 1.5, 1.9),
    },
    "ws_table5_vgg11_w1_cifar10": {0.80: (0.20, 0.48, 0.2, 0.4), 0.90: (0.63, 1.21, 0.1, 0.6)},
}  # fmt: skip


@pytest.mark.parametrize("name", RANGES)
def test_the_shipped_tables_hold_the_published_differences(name):
    table = published.table(name)
    for sparsity, (least, most, lth_least, lth_most) in RANGES[name].items():
        cell = table[(table["sparsity"] == sparsity) & (table["rewind_epoch"] >= 10)]
        means = cell.pivot(index="rewind_epoch", columns="method", values="mean")
        gain, gap = means["permuted"] - means["naive"], means["LTH"] - means["permuted"]
        assert (gain.min(), gain.max()) == pytest.approx((least, most), abs=0.005)
        assert (gap.min(), gap.max()) == pytest.approx((lth_least, lth_most), abs=0.06)


def test_an_unknown_published_table_is_refused_with_the_names_there_are():
    with pytest.raises(InputError) as raised:
        published.table("table3")
    assert str(raised.value).startswith("published table = 'table3': choose one of ")
    assert all(name in str(raised.value) for name in RANGES)


# -------------------------------------------------------------------------- the closer looks


def numbers(text: str) -> list[float]:
    """What stands behind the last colon of `…: mean [low, high]`."""
    return [float(text.rpartition(": ")[2].split(" [")[0])]


def test_the_verdicts_on_ensembles_quote_the_paper_and_our_table(finished):
    table = modes.of_ensembles(finished)
    assert list(table.columns) == evidence.COLUMNS
    row = table[table["claim"].str.startswith("permuted runs disagree")].iloc[0]
    assert row["paper"] == "ResNet20×1: 10.7 against 3.5"
    ours = diversity.table(finished)
    mean = (100 * ours["disagreement"]).groupby(ours["method"]).mean()
    assert row["ours"].startswith(f"{mean['permuted']:.1f} against {mean['lth']:.1f}: ")
    assert numbers(row["ours"]) == [pytest.approx(mean["permuted"] - mean["lth"], abs=0.006)]
    gain = table[table["claim"].str.startswith("an ensemble gains")].iloc[0]
    assert gain["paper"] == "ResNet20×1: 2.4 against 0.3"


def test_the_verdict_on_early_matching_is_about_gains_over_naive(finished):
    table = alignment_cost.of_early_matching(finished)
    row = table.iloc[0]
    at = early_matching.table(finished)
    mean = 100 * at.groupby(["method", "match_epoch"], dropna=False)["test_accuracy"].mean()
    gain = mean["permuted", 1] - mean["naive"].iloc[0]
    first = row["ours"].partition("t=1: ")[2].split(" [")[0]
    assert float(first) == pytest.approx(gain, abs=0.006)
    assert row["paper"] == "nothing at this sparsity"
    assert row["n"] == 2


def test_the_verdicts_on_variances_and_segments_follow_from_their_tables(finished):
    variances = variance.of_variances(finished).set_index("claim")
    mean = connectivity.variances(finished).groupby("path")["ratio"].mean()
    collapse = variances.loc["averaging two nets collapses the variance"]
    assert numbers(collapse["ours"]) == [pytest.approx(100 * (1 - mean["unmatched"]), abs=0.006)]
    segments = variance.of_segments(finished)
    assert segments["paper"].iloc[0] == "ResNet20×4: 14.0 → 4.0 pp"
    at = segment.barriers(finished).query("kind == 'dense-imp' and sparsity == 0.5")
    mean = at.groupby("correction")["error"].mean()
    assert f"S=50%: {mean['none'] - mean['repair']:+.2f} [" in segments["ours"].iloc[0]


def test_the_verdict_on_widths_compares_the_narrowest_with_the_widest(finished):
    table = width.of_widths([finished, finished], 0.5, 1)
    claims = ["matched", "matched_repair", "the wider net lacks less", "π closes more"]
    assert all(c.startswith(s) for c, s in zip(table["claim"], claims, strict=True))
    assert all(numbers(ours) == [0] for ours in table["ours"])
    assert "lacks less" not in " ".join(width.of_widths([finished] * 2, 0.7, 1)["claim"])


def test_every_verdict_of_a_study_is_given_with_its_heading(finished):
    given = dict(gallery.verdicts([finished]))
    assert list(given) == [
        "tiny, halfway", "tiny, overlaps", "tiny, 50% sparsity", "tiny, 50%, against dense",
        "tiny, variance", "tiny, segments", "tiny, ensembles", "tiny, one mode or two",
        "tiny, early matching", "tiny, few images",
    ]  # fmt: skip
    for table in given.values():
        assert len(table) > 0
        assert list(table.columns) == evidence.COLUMNS
        assert outcomes(table) <= {"holds", "contradicted", "open"}
    expected = sparse_claims.of_sparse_runs(finished.results(), sparsity=0.5)
    pd.testing.assert_frame_equal(given["tiny, 50% sparsity"], expected)


def test_the_verdict_on_the_widths_is_of_the_cell_that_is_looked_at_closer(finished):
    (heading, table), (next_heading, _) = width.WIDTH.verdicts([finished, finished])
    assert (heading, next_heading) == ("mlp, width", "mlp, sparse runs")
    pd.testing.assert_frame_equal(table, width.of_widths([finished] * 2, 0.5, 1))
