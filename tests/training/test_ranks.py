"""Two ranks against one process: the same batches, so the same nets, up to rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from rebasin_utils.errors import InputError
from rebasin_utils.nets import models
from rebasin_utils.training.parallel import require_parts
from rebasin_utils.training.recipes import Recipe
from rebasin_utils.training.stacking import Single

#: How far 20 steps may end apart, as a share of a tensor's largest number, or of 1 where that is
#: smaller. Without batch norm only sums are rounded otherwise. Groups are computed alike.
#: Synchronised batch norm sums in another order, and whatever lies on the kink of a ReLU may fall
#: to either side. So it is where AWS interpolates the norms, by the same draws on all ranks.
TOLERANCE = {"mlp": 1e-6, "grouped": 1e-6, "synchronised": 1e-3, "interpolated": 1e-3}


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """What one process and what two ranks have made of every deed."""
    script, ends = Path(__file__).with_name("two_ranks.py"), []
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for how in ([], torchrun):
        folder = tmp_path_factory.mktemp("ends")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(
            [sys.executable, *how, str(script), str(folder)], check=True, env=environment
        )
        ends.append({file.name: load_file(file) for file in folder.iterdir()})
    return ends


@pytest.mark.parametrize("deed", list(TOLERANCE))
def test_two_ranks_train_as_one_process(ends, deed):
    one, two = (end[deed] for end in ends)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        apart = (tensor - two[name]).abs().max()
        assert apart <= TOLERANCE[deed] * tensor.abs().max().clamp_min(1), name
        assert torch.equal(tensor == 0, two[name] == 0) or not name.endswith("weight")  # the mask


def test_interpolated_norms_make_another_net(ends):
    for end in ends:
        assert (end["interpolated"]["losses"] - end["synchronised"]["losses"]).abs().max() > 2.5e-3


@pytest.mark.parametrize("deed", ["match-mlp", "match-resnet8"])
def test_two_ranks_find_the_same_permutation(ends, deed):
    one, two = (end[deed] for end in ends)
    assert all(torch.equal(p, two[name]) for name, p in one.items())


# ------------------------------------------------- what ranks have in common with one process


def batch(n: int = 12):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, n, 1, 14, 14, generator=generator)
    return x, torch.arange(n)[None] % 10


def test_groups_see_their_own_statistics_and_the_first_ones_stay():
    net = models.build("resnet8", (1, 14, 14), 10, seed=1)
    single = Single(net, [net.state_dict()], torch.device("cpu"), groups=3)
    x, y = batch()
    loss = single.losses(x, y)
    expected = models.build("resnet8", (1, 14, 14), 10, seed=1)
    first, losses = None, []
    for xs, ys in zip(x[0].chunk(3), y[0].chunk(3), strict=True):
        losses.append(F.cross_entropy(expected(xs), ys))
        first = first or {n: b.clone() for n, b in expected.named_buffers()}
    torch.stack(losses).mean().backward()
    assert torch.allclose(loss, torch.stack(losses).mean())
    gradients = single.gradients()
    for name, parameter in expected.named_parameters():
        assert torch.allclose(gradients[name][0], parameter.grad, atol=1e-6), name
    (state,) = single.states()
    assert all(torch.allclose(state[n], buffer, atol=1e-5) for n, buffer in first.items())
    assert state["stem.bn.num_batches_tracked"] == 1


def test_bf16_keeps_weights_and_statistics_in_float32():
    net = models.build("resnet8", (1, 14, 14), 10, seed=1)
    x, y = batch()
    losses, states = [], []
    for precision in ("float32", "bf16"):
        single = Single(net, [net.state_dict()], torch.device("cpu"), precision=precision)
        losses.append(single.losses(x, y))
        states += single.states()
        assert all(g.dtype == torch.float32 for g in single.gradients().values())
    assert losses[0] != losses[1]
    assert torch.allclose(*losses, rtol=0.02)
    assert all(t.dtype != torch.bfloat16 for t in states[1].values())
    name = "stages.2.0.bn2.running_var"
    assert torch.allclose(states[0][name], states[1][name], rtol=0.05)


def test_what_ranks_cannot_share_is_refused():
    recipe = Recipe(epochs=1, lr=0.1, batch_size=12, batch_norm_groups=4)
    require_parts(recipe, 2)
    with pytest.raises(InputError, match=r"imp.batch_size = 12: must be a multiple of the 5 ranks"):
        require_parts(recipe, 5, "imp")
    with pytest.raises(InputError, match=r"batch_norm_groups = 4: must be 1, .* the 3 ranks"):
        require_parts(recipe, 3)
    with pytest.raises(ValueError, match=r"batch_norm_groups\n.*must divide the batch of 12"):
        Recipe(epochs=1, lr=0.1, batch_size=12, batch_norm_groups=5)


def test_precision_and_groups_are_hashed_where_they_are_used():
    plain = Recipe(epochs=1, lr=0.1)
    assert not {"precision", "batch_norm_groups"} & plain.facts().keys()
    other = Recipe(epochs=1, lr=0.1, precision="bf16", batch_norm_groups=4)
    assert other.facts() == {**plain.facts(), "precision": "bf16", "batch_norm_groups": 4}
