"""A module where its state is meant, or a state where a module is: one sentence, wherever it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rebasin_utils.errors import InputError
from rebasin_utils.landscape import interpolation, repair
from rebasin_utils.landscape.plane import Plane
from rebasin_utils.nets import masks, models
from rebasin_utils.symmetry.matching import match_activations, similarities
from rebasin_utils.symmetry.permutation import identity, permute
from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.symmetry.weight_matching import match_weights
from rebasin_utils.training import pruning, signs
from rebasin_utils.training.evaluate import evaluate, predict
from rebasin_utils.training.recipes import Recipe
from rebasin_utils.training.train import Job, train

NET = models.build("mlp_bn", (1, 14, 14), 10)
STATE = NET.state_dict()
MASK = masks.dense_mask(STATE, masks.prunable(NET))
SPEC = PermutationSpec.trace(NET, torch.zeros(2, 1, 14, 14))
X = [torch.rand(8, 1, 14, 14)]
RECIPE = Recipe(epochs=1, lr=0.1, batch_size=64)

#: Each is called with a module in place of a state.
WITH_A_MODULE: dict[str, Callable] = {
    "permute": lambda net, images: permute(SPEC, identity(SPEC), net),
    "lerp, first": lambda net, images: interpolation.lerp(net, STATE, 0.5),
    "lerp, second": lambda net, images: interpolation.lerp(STATE, net, 0.5),
    "path": lambda net, images: interpolation.path(NET, net, STATE, [0, 1], images),
    "reset_batch_norm": lambda net, images: interpolation.reset_batch_norm(NET, net, X),
    "statistics": lambda net, images: repair.statistics(NET, net, X),
    "repair": lambda net, images: repair.repair(NET, net, repair.statistics(NET, STATE, X), X),
    "plane": lambda net, images: Plane.through(NET, STATE, STATE, net),
    "match_weights": lambda net, images: match_weights(SPEC, net, STATE),
    "evaluate": lambda net, images: evaluate(NET, [STATE, net], images),
    "predict": lambda net, images: predict(NET, [net], images),
    "train": lambda net, images: train(NET, Job(net, 0), RECIPE, images),
    "dense_mask": lambda net, images: masks.dense_mask(net, masks.prunable(NET)),
    "global_magnitude": lambda net, images: masks.global_magnitude(net, MASK, 10),
    "prune": lambda net, images: pruning.prune(net, MASK, 0.5),
    "apply": lambda net, images: masks.apply(MASK, net),
    "rescaled": lambda net, images: masks.rescaled(MASK, net),
    "sparse_aware": lambda net, images: masks.sparse_aware(MASK, net),
    "signs of": lambda net, images: signs.of(net, MASK),
    "signs of biases": lambda net, images: signs.of_biases(NET, net, MASK),
    "signs of the classifier": lambda net, images: signs.of_classifier(NET, net),
    "transfer": lambda net, images: signs.transfer(net, signs.of(STATE, MASK)),
    "canonical": lambda net, images: signs.canonical(NET, net),
    "negative_gammas": lambda net, images: signs.negative_gammas(NET, net),
}


@pytest.mark.parametrize("name", WITH_A_MODULE)
def test_a_module_in_place_of_a_state_is_told_so(name, images):
    with pytest.raises(InputError, match=r"is a MLP: give its state_dict\(\)$"):
        WITH_A_MODULE[name](NET, images)


def test_what_is_neither_is_told_what_to_give():
    with pytest.raises(InputError, match="second is a list: give a dict of tensors by name"):
        interpolation.lerp(STATE, [1, 2], 0.5)


@pytest.mark.parametrize("match", [match_activations, similarities])
def test_a_state_in_place_of_a_module_is_told_so(match):
    with pytest.raises(InputError, match="reference is a OrderedDict: give the network, a module"):
        match(SPEC, NET, STATE, X)
