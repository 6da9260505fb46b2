"""Verdicts on simulated studies, whose true effects are known.

The rates are counted over `STUDIES` simulated studies each; where one is held against a stated
level or power, three standard errors of such a count are allowed for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from rebasin_utils.chapters import judgement
from rebasin_utils.chapters.judgement import LEVEL, MARGIN, MOST_PAIRS, POWER, judge, summary
from rebasin_utils.errors import InputError

STUDIES = 1000
AT_MOST = LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / STUDIES)
AT_LEAST = POWER - 3 * math.sqrt(POWER * (1 - POWER) / STUDIES)

Draw = Callable[[np.random.Generator], list[np.ndarray]]  # the cells of one study


def rates(draw: Draw, kind: str, spread: str = "normal") -> Counter:
    """How often each outcome comes out, of `STUDIES` studies drawn anew."""
    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:  # what takes longest, and is not asked for here
        patch.setattr(judgement, "_pairs_to_settle", lambda *_: None)
        outcomes = Counter(
            judge({f"k={k}": cell for k, cell in enumerate(draw(rng))}, kind, spread=spread).outcome
            for _ in range(STUDIES)
        )
    return Counter({outcome: count / STUDIES for outcome, count in outcomes.items()})


def normal(pairs: int, effect: float, std: float = 1.0) -> Draw:
    return lambda rng: [effect + std * rng.standard_normal(pairs)]


def collapsing(pairs: int, effect: float, to: float) -> Draw:
    """A fifth of the pairs differ by 40 points: first collapses (to −1), or second (to 1)."""
    return lambda rng: [effect + rng.standard_normal(pairs) + 40 * to * (rng.random(pairs) < 0.2)]


def skewed(pairs: int, effect: float, to: float) -> Draw:
    return lambda rng: [effect + to * rng.exponential(size=pairs)]


def with_values(mean: float, std: float, pairs: int) -> np.ndarray:
    """Pairs that have this mean and this standard deviation."""
    values = np.random.default_rng(0).standard_normal(pairs)
    return mean + std * (values - values.mean()) / values.std(ddof=1)


def with_interval(mean: float, high: float, pairs: int) -> np.ndarray:
    """Pairs that have this mean, and this upper end of its 95% interval."""
    std = (high - mean) / stats.t.ppf(0.975, pairs - 1) * math.sqrt(pairs)
    return with_values(mean, std, pairs)


#: The median of `collapsing` is effect + to · OFF, that of `skewed` is effect + to · ln 2.
OFF = float(stats.norm.ppf(0.5 / 0.8))

#: Where the range that a claim gives its differences ends.

BORDERS = [("more", 0.0), ("no worse", -MARGIN), ("same", MARGIN), ("same", -MARGIN)]


# ------------------------------------------------------------------------- wrong verdicts are rare


@pytest.mark.parametrize("pairs", [2, 3, 4, 8])
@pytest.mark.parametrize(("kind", "border"), BORDERS)
def test_where_a_claim_ends_it_holds_and_is_contradicted_no_more_often_than_stated(
    kind, border, pairs
):
    found = rates(normal(pairs, border, std=0.3), kind)
    assert found["holds"] <= AT_MOST
    assert found["contradicted"] <= AT_MOST


@pytest.mark.parametrize("pairs", [8, 16])
@pytest.mark.parametrize("to", [-1, 1])
@pytest.mark.parametrize(("kind", "border"), BORDERS)
def test_so_it_is_for_collapsing_runs_where_any_spread_is_allowed(kind, border, to, pairs):
    found = rates(collapsing(pairs, border - to * OFF, to), kind, "any")
    assert found["holds"] <= AT_MOST
    assert found["contradicted"] <= AT_MOST


@pytest.mark.parametrize("to", [-1, 1])
def test_so_it_is_for_skewed_spreads(to):
    found = rates(skewed(8, -to * math.log(2), to), "more", "any")
    assert found["holds"] <= AT_MOST
    assert found["contradicted"] <= AT_MOST


def test_for_collapsing_runs_a_normal_spread_is_a_wrong_assumption():
    assert rates(collapsing(8, -OFF, 1), "more")["holds"] > 3 * LEVEL


def test_one_false_cell_among_true_ones_holds_no_more_often_than_stated():
    def draw(rng):
        common = rng.standard_normal(8)  # the pairs are the same in every cell
        return [effect + common + 0.5 * rng.standard_normal(8) for effect in (4, 0, 4)]

    assert rates(draw, "more")["holds"] <= AT_MOST


@pytest.mark.parametrize("shared", [0, 1])
def test_many_true_cells_are_contradicted_no_more_often_than_one(shared):
    def draw(rng):
        common = shared * rng.standard_normal(8)
        return [common + rng.standard_normal(8) for _ in range(6)]

    assert rates(draw, "more")["contradicted"] <= AT_MOST


@pytest.mark.parametrize("effect", [0, MARGIN])
def test_sameness_has_two_sides_and_is_contradicted_no_more_often_for_it(effect):
    assert rates(normal(8, effect, std=20), "same")["contradicted"] <= AT_MOST


@pytest.mark.parametrize("pairs", [2, 4, 8])
def test_too_few_pairs_are_no_evidence_of_sameness(pairs):
    assert rates(normal(pairs, effect=1, std=0.6), "same")["holds"] <= LEVEL


# ---------------------------------------------------------------------- right verdicts are common

#: Differences of so many standard deviations from where a claim ends are seen.
SEEN = {3: 3.0, 4: 2.0, 8: 1.1}


@pytest.mark.parametrize("pairs", SEEN)
@pytest.mark.parametrize(("kind", "border"), BORDERS[:2])
def test_a_true_claim_holds_and_a_false_one_is_contradicted_in_most_studies(kind, border, pairs):
    assert rates(normal(pairs, border + SEEN[pairs]), kind)["holds"] >= 0.8
    assert rates(normal(pairs, border - SEEN[pairs]), kind)["contradicted"] >= 0.8


@pytest.mark.parametrize(("pairs", "std", "effect"), [(3, 0.15, 1.1), (4, 0.2, 1.1), (8, 0.4, 1.1)])
def test_no_difference_is_seen_to_be_none_and_one_to_be_one(pairs, std, effect):
    assert rates(normal(pairs, 0, std), "same")["holds"] >= 0.8
    for sign in (-1, 1):
        assert rates(normal(pairs, sign * effect, std), "same")["contradicted"] >= 0.8


def test_several_cells_hold_and_are_contradicted_in_most_studies_too():
    def cells(*effects):
        return lambda rng: [effect + rng.standard_normal(8) for effect in effects]

    assert rates(cells(1.6, 1.6, 1.6), "more")["holds"] >= 0.8
    assert rates(cells(1.6, -1.6, 1.6), "more")["contradicted"] >= 0.8


def test_collapsing_runs_are_decided_by_eight_pairs_where_a_mean_would_decide_little():
    assert rates(collapsing(8, 2, 1), "more", "any")["holds"] >= 0.8
    assert rates(collapsing(8, -2, -1), "more", "any")["contradicted"] >= 0.8
    assert rates(collapsing(8, 2, 1), "more")["holds"] < 0.6


@pytest.mark.parametrize(("kind", "effect", "std"), [("more", 0.8, 1), ("no worse", 0, 0.7),
                                                     ("same", 0.1, 0.4)])  # fmt: skip
def test_more_pairs_let_a_true_claim_hold_more_often(kind, effect, std):
    shares = [rates(normal(pairs, effect, std), kind)["holds"] for pairs in (2, 4, 8, 16, 32)]
    assert shares == sorted(shares)
    assert shares[-1] > 0.8 > 0.3 > shares[0]


def test_more_pairs_let_a_true_claim_about_collapsing_runs_hold_more_often():
    shares = [rates(collapsing(n, 0.8, 1), "more", "any")["holds"] for n in (4, 8, 16, 32)]
    assert shares == sorted(shares)
    assert shares[-1] > 0.8 > shares[0] == 0


# -------------------------------------------------------------------------------- single verdicts


@pytest.mark.parametrize("kind", ["more", "no worse", "same"])
@pytest.mark.parametrize("spread", ["normal", "any"])
@pytest.mark.parametrize("value", [-30, 0, 30])
def test_one_pair_decides_nothing(kind, spread, value):
    verdict = judge({"k=0": [value]}, kind, spread=spread)
    assert str(verdict) == "open: one pair shows no spread"
    assert verdict.pairs_to_settle is None
    of = "median " if spread == "any" else ""
    assert verdict.differences == f"k=0: {of}{value:+.2f} [-∞, +∞]"


def test_two_pairs_far_apart_are_no_evidence_of_sameness():
    assert judge({"k=0": [-1, 1]}, "same").outcome == "open"


@pytest.mark.parametrize("kind", ["more", "no worse", "same"])
def test_without_a_normal_spread_five_pairs_are_the_fewest_that_decide(kind):
    inside = {"more": 30, "no worse": 30, "same": 0}[kind]
    values = inside + 0.01 * np.arange(5)
    assert judge({"k=0": values[:4]}, kind, spread="any").outcome == "open"
    assert judge({"k=0": values}, kind, spread="any").outcome == "holds"


@pytest.mark.parametrize("value", [0, 0.1, 1 / 3])
def test_equal_differences_show_no_spread_and_count_by_their_number(value):
    rounded = value + 1e-15 * np.arange(5)
    assert judge({"k=0": rounded[:4]}, "same").outcome == "open"
    assert judge({"k=0": rounded}, "same").outcome == "holds"


def test_what_was_said_to_hold_at_97_percent_is_open_and_what_21_pairs_say_is_not():
    """Two findings on "from the true init permuting makes no difference", by mean and interval."""
    few = with_interval(7.6, 20.7, pairs=4)
    assert {judge({"k=0": few}, "same", spread=s).outcome for s in ("normal", "any")} == {"open"}
    at_90, at_97 = with_interval(0.73, 1.21, pairs=21), with_interval(6.2, 10.4, pairs=21)
    assert judge({"k=0": at_90}, "same").outcome == "open"
    assert judge({"k=0": at_97}, "same").outcome == "contradicted"
    both = {"S=90%": at_90, "S=97%": at_97}
    assert judge(both, "same").outcome == "contradicted"
    assert judge(both, "more").outcome == "holds"


def test_one_undecided_cell_leaves_a_claim_open_and_one_on_the_other_side_contradicts_it():
    good, even, bad = (with_values(mean, 1, 8) for mean in (3, 0, -3))
    assert judge({"k=1": good, "k=5": good}, "more").outcome == "holds"
    assert judge({"k=1": good, "k=5": even}, "more").outcome == "open"
    assert judge({"k=1": good, "k=5": bad}, "more").outcome == "contradicted"


def test_a_cell_of_one_pair_keeps_a_claim_from_holding_and_not_from_being_contradicted():
    good, bad = with_values(3, 1, 8), with_values(-3, 1, 8)
    for spread in ("normal", "any"):
        assert judge({"k=1": good, "k=5": [3]}, "more", spread=spread).outcome == "open"
        assert judge({"k=1": bad, "k=5": [3]}, "more", spread=spread).outcome == "contradicted"
    assert judge({"k=1": good, "k=5": [3]}, "more").pairs_to_settle is None


def test_a_margin_is_what_the_claim_allows():
    values = with_values(-0.7, 0.1, 8)
    assert judge({"k=1": values}, "no worse").outcome == "contradicted"
    assert judge({"k=1": values}, "same").outcome == "contradicted"
    for kind in ("no worse", "same"):
        assert judge({"k=1": values}, kind, margin=1).outcome == "holds"
    assert judge({"k=1": values}, "no worse").claimed == "above -0.5"
    assert judge({"k=1": values}, "same", margin=1).claimed == "between -1 and 1"
    assert judge({"k=1": values}, "more").claimed == "above 0"


@pytest.mark.parametrize("spread", ["normal", "any"])
def test_the_order_of_pairs_and_cells_does_not_change_a_verdict(spread):
    rng = np.random.default_rng(0)
    cells = {f"k={k}": 0.3 + rng.standard_normal(8) for k in range(3)}
    shuffled = {label: rng.permutation(cells[label]).tolist() for label in reversed(cells)}
    before = {label: values.copy() for label, values in cells.items()}
    first, second = (judge(each, "more", spread=spread) for each in (cells, shuffled))
    assert (first.outcome, first.pairs_to_settle) == (second.outcome, second.pairs_to_settle)
    assert set(first.intervals) == set(second.intervals)
    assert all((cells[label] == before[label]).all() for label in cells)


# ---------------------------------------------------------------------- intervals, against scipy


def test_a_normal_interval_is_students():
    values = with_values(0.4, 1.3, 7)
    (interval,) = judge({"k=1": values}, "more").intervals
    expected = stats.ttest_1samp(values, 0).confidence_interval(1 - 2 * LEVEL)
    assert (interval.low, interval.high) == pytest.approx(tuple(expected))
    assert interval.centre == pytest.approx(0.4)


@pytest.mark.parametrize("pairs", [4, 5, 7, 8, 13, 21])
def test_an_interval_of_any_spread_is_the_sign_tests(pairs):
    values = np.random.default_rng(pairs).standard_cauchy(pairs)
    (interval,) = judge({"k=1": values}, "more", spread="any").intervals
    low, high = (
        stats.quantile_test(values, p=0.5, alternative=side).confidence_interval(1 - LEVEL)
        for side in ("greater", "less")
    )
    expected = np.nan_to_num(low.low, nan=-math.inf), np.nan_to_num(high.high, nan=math.inf)
    assert (interval.low, interval.high) == expected
    assert interval.centre == np.median(values)


# -------------------------------------------------------------------------------- pairs to settle


@pytest.mark.parametrize("mean", [2, 1.3, 0.7, 0.3, 0.1, -0.2])
def test_the_pairs_that_would_settle_a_claim_are_those_of_a_paired_t_test(mean):
    stated = judge({"k=1": with_values(mean, 1, 2)}, "more").pairs_to_settle

    def power(pairs):
        ncp = abs(mean) * math.sqrt(pairs)
        return stats.nct.sf(stats.t.isf(LEVEL, pairs - 1), pairs - 1, ncp)

    assert power(stated) > POWER - 0.001
    assert power(stated - 1) < POWER + 0.001


@pytest.mark.parametrize(
    ("kind", "effects", "std"),
    [
        ("more", (0.5,), 1),
        ("more", (0.5, 0.6, 0.7), 1),
        ("more", (0.8, -0.5), 1),
        ("no worse", (-0.1,), 1),
        ("same", (0.1,), 0.5),
        ("same", (1.2,), 1),
    ],
)
def test_so_many_pairs_settle_a_claim_at_the_stated_rate_and_half_of_them_do_not(
    kind, effects, std
):
    seen = {f"k={k}": with_values(effect, std, 4) for k, effect in enumerate(effects)}
    stated = judge(seen, kind).pairs_to_settle

    def settled(pairs):
        def draw(rng):
            return [effect + std * rng.standard_normal(pairs) for effect in effects]

        return 1 - rates(draw, kind)["open"]

    assert settled(stated) >= AT_LEAST
    assert settled(stated // 2) < POWER - 0.1


def test_so_many_pairs_settle_a_claim_about_collapsing_runs_too():
    seen = np.array([1.0, 2, 41, -38, 1.5, 2.5])
    stated = judge({"k=0": seen}, "more", spread="any").pairs_to_settle
    share = (1 + 0.5) / (len(seen) + 1)

    def settled(pairs):
        def draw(rng):
            return [1 + rng.random(pairs) - 40 * (rng.random(pairs) < share)]

        return 1 - rates(draw, "more", "any")["open"]

    assert settled(stated) >= AT_LEAST
    assert settled(stated // 2) < POWER - 0.1


def test_what_lies_where_a_claim_ends_is_not_settled_by_any_number_of_pairs():
    verdict = judge({"k=1": with_values(0, 1, 8)}, "more")
    assert verdict.pairs_to_settle is None
    assert str(verdict) == f"open: not even {MOST_PAIRS} pairs would settle it"
    assert judge({"k=1": with_values(MARGIN, 1, 8)}, "same").pairs_to_settle is None


def test_only_what_is_open_has_pairs_to_settle_and_more_than_there_are():
    assert judge({"k=1": with_values(3, 1, 8)}, "more").pairs_to_settle is None
    assert judge({"k=1": with_values(-3, 1, 8)}, "more").pairs_to_settle is None
    stated = [judge({"k=1": with_values(e, 1, 8)}, "more").pairs_to_settle for e in (0.6, 0.4, 0.2)]
    assert 8 < stated[0] < stated[1] < stated[2]


# ------------------------------------------------------------------------------------------ words


def test_a_verdict_says_what_was_seen_and_what_follows():
    cells = {"k=1": with_values(3, 1, 8), "k=5": with_values(2, 1, 9)}
    verdict = judge(cells, "more")
    assert str(verdict) == "holds"
    assert verdict.differences == "k=1: +3.00 [+2.33, +3.67]; k=5: +2.00 [+1.38, +2.62]"
    assert verdict.pairs == 8
    assert str(judge({"k=1": with_values(-3, 1, 8)}, "more")) == "contradicted at this scale"
    undecided = judge({"k=1": with_values(0.4, 1, 8)}, "more")
    assert str(undecided) == f"open: about {undecided.pairs_to_settle} pairs would settle it"
    any_spread = judge({"k=1": [1, 2, 3, 4, 60]}, "more", spread="any")
    assert any_spread.differences == "k=1: median +3.00 [+1.00, +60.00]"


def test_a_summary_counts_the_outcomes():
    assert summary(["holds", "open", "holds", "contradicted"]) == (
        "4 claims: 2 hold, 1 open, 1 contradicted at this scale"
    )
    assert summary(["holds"]) == "1 claim: 1 holds, 0 open, 0 contradicted at this scale"
    assert summary([]) == "0 claims: 0 hold, 0 open, 0 contradicted at this scale"
    with pytest.raises(InputError, match="outcome = 'true': must be holds, open, contradicted"):
        summary(["true"])


@pytest.mark.parametrize(
    ("differences", "options", "sentence"),
    [
        ({}, {}, "differences = {}: there must be at least one cell to judge"),
        ({"k=1": []}, {}, "differences of 'k=1': there must be at least one pair"),
        ({"k=1": [1, math.nan]}, {}, "differences of 'k=1': one is nan, all must be finite"),
        ({"k=1": [-math.inf, 1]}, {}, "differences of 'k=1': one is -inf, all must be finite"),
        ({"k=1": [1, 2]}, {"kind": "less"}, "kind = 'less': choose one of more, no worse, same"),
        ({"k=1": [1, 2]}, {"margin": 0}, "margin = 0: must be a finite number above 0"),
        ({"k=1": [1, 2]}, {"margin": math.nan}, "margin = nan: must be a finite number above 0"),
        ({"k=1": [1, 2]}, {"spread": "odd"}, "spread = 'odd': choose one of normal, any"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_sentence(differences, options, sentence):
    with pytest.raises(InputError) as raised:
        judge(differences, **({"kind": "more"} | options))
    assert str(raised.value) == sentence
