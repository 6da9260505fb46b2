"""π from few images: the same matching, on fewer images; what it is worth is measured on others."""

from __future__ import annotations

import pytest
import torch

from rebasin_utils.chapters import alignment_cost
from rebasin_utils.study.stages import few_images, matching, sparse
from rebasin_utils.symmetry.permutation import permute

IMAGES = (16, 128)


def test_it_is_the_matching_of_a_study_that_has_so_few(finished):
    s = finished.settings
    for images in IMAGES:
        few = matching.of_pair(s, 0, images=images)
        plain = s.with_values(**{"matching.samples": images})
        assert few.key.digest == matching.of_pair(plain, 0).key.digest
        assert few.key.digest != matching.of_pair(s, 0).key.digest


def test_more_images_fit_the_seen_ones_less_and_others_better(finished):
    table = few_images.table(finished).dropna(subset="images").groupby("images").mean()
    few, many = (table.loc[images] for images in IMAGES)
    assert few["in_sample"] > many["in_sample"] > many["held_out"] > few["held_out"]
    assert (table["held_out"] <= table["best_held_out"] + 1e-12).all()
    assert few["best_held_out"] == pytest.approx(many["best_held_out"])
    assert few["regret"] > many["regret"] > 0
    assert few["barrier"] >= 0


def test_the_permuted_run_has_the_mask_by_that_permutation(finished):
    s = finished.settings
    run = few_images.permuted(s, 0, 16)
    plain = few_images.permuted(s, 0)
    assert plain == sparse.one(s, "permuted", s.closer_look.sparsity, s.closer_look.rewind_epoch, 0)
    found = sparse.mask_for(finished, run)
    pi = finished.tensors(matching.of_pair(s, 0, images=16))
    expected = permute(finished.spec, pi, finished.state(run.parents[1], "mask"))
    assert all(torch.equal(found[name], mask) for name, mask in expected.items())
    assert any(
        not torch.equal(found[name], mask)
        for name, mask in sparse.mask_for(finished, plain).items()
    )


def test_the_chapter_says_what_they_are_worth(finished):
    table = few_images.table(finished)
    own = table[table["images"].isna()].set_index("seed")["test_accuracy"]
    last = table[table["images"] == IMAGES[-1]].set_index("seed")["test_accuracy"]
    rows = alignment_cost.of_few_images(finished)
    assert f"n=128: {100 * (last - own).mean():+.2f}" in rows["ours"].iloc[0]
    assert len(rows) == 3
    figure = alignment_cost.by_images(table)
    shown = {trace.name for trace in figure.data if trace.name}
    assert len(shown) == 3
