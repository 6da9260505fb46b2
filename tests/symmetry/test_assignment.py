"""The assignment is the best there is; of equally good ones the rule chooses, not the noise."""

from itertools import permutations

import numpy as np
import pytest

from rebasin_utils.symmetry.assignment import assigned, best_assignment, refined


def total(similarity: np.ndarray, p) -> float:
    return similarity[np.arange(len(p)), np.asarray(p)].sum()


def noisy(similarity: np.ndarray, seed: int) -> np.ndarray:
    return similarity + 1e-8 * np.random.default_rng(seed).standard_normal(similarity.shape)


@pytest.mark.parametrize("seed", range(5))
def test_no_permutation_has_a_larger_total(seed):
    similarity = np.random.default_rng(seed).standard_normal((6, 6))
    best = max(total(similarity, p) for p in permutations(range(6)))
    assert total(similarity, best_assignment(similarity, 1e-5)) == pytest.approx(best, abs=1e-12)


def test_dead_units_go_to_the_places_that_are_left_in_ascending_order():
    """Row 1 and columns 0, 3 are dead: two rows get them, whichever they are, lower to lower."""
    similarity = np.zeros((4, 4))
    similarity[0, 2], similarity[2, 1], similarity[3, 1] = 0.9, 0.8, 0.3
    assert best_assignment(similarity, 1e-5).tolist() == [2, 0, 1, 3]


def with_ties(seed: int) -> np.ndarray:
    """12 units, of which 3 are dead in each net, and 3 are copies of one another in each."""
    rng = np.random.default_rng(seed)
    similarity = rng.uniform(-1, 1, (12, 12))
    similarity[[1, 5, 6]] = 0.0
    similarity[:, [0, 2, 9]] = 0.0
    similarity[[3, 7]] = similarity[11]
    similarity[:, [4, 8]] = similarity[:, [10]]
    return similarity


@pytest.mark.parametrize("seed", range(10))
def test_rounding_noise_does_not_choose_between_equal_units(seed):
    similarity = with_ties(seed)
    expected = best_assignment(similarity, 1e-5)
    chosen = [best_assignment(noisy(similarity, s), 1e-5) for s in range(20)]
    assert all(np.array_equal(p, expected) for p in chosen)
    assert sorted(expected) == list(range(12))
    solver = [best_assignment(noisy(similarity, s), 0.0) for s in range(20)]
    assert any(not np.array_equal(p, solver[0]) for p in solver), "the case has no ties to settle"


@pytest.mark.parametrize("seed", range(10))
def test_settling_ties_costs_nothing(seed):
    similarity = with_ties(seed)
    p, q = (best_assignment(similarity, precision) for precision in (1e-5, 0.0))
    assert total(similarity, p) == pytest.approx(total(similarity, q), abs=1e-12)


def test_copies_keep_their_order():
    """All units of both nets alike: nothing says that any should move."""
    assert best_assignment(np.full((5, 5), 0.7), 1e-5).tolist() == [0, 1, 2, 3, 4]
    assert best_assignment(np.zeros((3, 3)), 1e-5).tolist() == [0, 1, 2]


# ------------------------------------------------------------------- what settles the open pairs


@pytest.mark.parametrize("seed", range(20))
def test_a_second_similarity_settles_ties_at_no_cost_to_the_first(seed):
    """By brute force over 6 units: of all best assignments the one that the second likes best."""
    rng = np.random.default_rng(seed)
    similarity = rng.integers(0, 2, (6, 6)).astype(float)  # few values: many are equally good
    similarity[4] = similarity[5] = 0.0
    similarity[:, 1] = similarity[:, 2]
    first = assigned(similarity, 1e-5)
    further = rng.standard_normal((len(first.open_rows),) * 2)
    second = refined(first, further, 1e-5)

    def of_open(p) -> float:
        rows = first.open_rows
        return further[np.arange(len(rows)), np.searchsorted(first.open_columns, p[rows])].sum()

    closed = np.setdiff1d(np.arange(6), first.open_rows)
    assert len(first.open_rows) >= 2
    assert np.array_equal(second.columns[closed], first.columns[closed])
    assert total(similarity, second.columns) == pytest.approx(total(similarity, first.columns))
    kinds = {tuple(x) for x in zip(first.row_kinds, first.column_kinds[first.columns], strict=True)}
    best = max(
        of_open(np.array(p))
        for p in permutations(range(6))
        if all((first.row_kinds[i], first.column_kinds[j]) in kinds for i, j in enumerate(p))
    )
    assert of_open(second.columns) == pytest.approx(best)
    assert not len(second.open_rows)


def test_what_a_second_similarity_leaves_open_goes_by_position():
    first = assigned(np.zeros((5, 5)), 1e-5)
    assert first.open_rows.tolist() == first.open_columns.tolist() == [0, 1, 2, 3, 4]
    further = np.zeros((5, 5))
    further[0, 3] = 1.0
    second = refined(first, further, 1e-5)
    assert second.columns.tolist() == [3, 0, 1, 2, 4]
    assert second.open_rows.tolist() == [1, 2, 3, 4]


def test_nothing_is_open_where_all_units_differ():
    assert not len(assigned(np.eye(4), 1e-5).open_rows)
    assert not len(assigned(np.zeros((1, 1)), 1e-5).open_rows)
