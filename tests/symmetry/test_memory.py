"""Networks that ask for contiguous memory: what is proved is matched, measured, trained."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rebasin_utils.landscape.interpolation import path, reset_batch_norm
from rebasin_utils.landscape.repair import repair, statistics
from rebasin_utils.nets import models
from rebasin_utils.nets.devices import runs_channels_last
from rebasin_utils.symmetry.activations import streamed
from rebasin_utils.symmetry.matching import match_activations
from rebasin_utils.symmetry.permutation import permute, random_permutation
from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.symmetry.tracing.taps import tapped
from rebasin_utils.training.evaluate import evaluate, predict
from rebasin_utils.training.recipes import Recipe
from rebasin_utils.training.stacking import Contiguous, Single, stack_for
from rebasin_utils.training.train import Job, train


class LeNet(nn.Module):
    """As every tutorial has it, with a batch norm."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 16, 3)
        self.norm, self.pool = nn.BatchNorm2d(6), nn.MaxPool2d(2)
        self.fc1, self.fc2 = nn.Linear(16 * 16, 24), nn.Linear(24, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x)))[:, :, :4, :4]
        x = x.clone(memory_format=torch.preserve_format)
        x = x.view(x.size(0), -1)
        return self.fc2(torch.relu(self.fc1(x)))


class Flat(nn.Module):
    """No convolution: the images themselves are taken apart."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3 * 196, 24), nn.Linear(24, 10)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x.view(x.size(0), -1))))


NETS = {"lenet": (LeNet, 1), "flat": (Flat, 3)}


def lenet(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LeNet().eval()


@pytest.mark.parametrize("name", NETS)
def test_a_proved_net_that_needs_contiguous_memory_is_matched(name):
    make, channels = NETS[name]
    torch.manual_seed(0)
    net, x = make().eval(), torch.randn(64, channels, 14, 14)
    spec = PermutationSpec.trace(net, x)
    spec.prove(net, x)
    expected = tapped(net, spec)(x)
    for group, matrix in streamed(net, spec)(x):
        torch.testing.assert_close(matrix, expected[group], atol=1e-5, rtol=1e-5)
    planted = random_permutation(spec, torch.Generator().manual_seed(0))
    moving = copy.deepcopy(net)
    moving.load_state_dict(permute(spec, planted, net.state_dict()))
    found = match_activations(spec, moving, net, [x])
    moved = permute(spec, found.permutation, moving.state_dict())
    assert all(torch.equal(moved[n], t) for n, t in net.state_dict().items())


def test_its_statistics_are_measured_reset_and_repaired(images, capsys):
    net, x = lenet(), images.normalised(images.pixels)
    state = net.state_dict()
    seen = {}
    hook = net.norm.register_forward_hook(lambda module, inputs, out: seen.update(norm=out))
    with torch.no_grad():
        net(x)
    hook.remove()
    moments = statistics(net, state, [x])
    torch.testing.assert_close(moments["norm"].mean, seen["norm"].mean((0, 2, 3)))
    reset = reset_batch_norm(net, state, [x])
    with torch.no_grad():
        torch.testing.assert_close(reset["norm.running_mean"], net.conv1(x).mean((0, 2, 3)))
    assert reset["norm.num_batches_tracked"] == 1
    same = repair(net, state, moments, [x])
    for name, tensor in state.items():
        torch.testing.assert_close(same[name], tensor)
    assert capsys.readouterr() == ("", "")  # that another layout was tried is nobody's concern


def test_it_is_trained_and_evaluated_as_torch_does(images):
    net = lenet()
    start = copy.deepcopy(net.state_dict())
    x, y = images.normalised(images.pixels), images.labels
    assert stack_for(net, images, 64) == (Contiguous, 1)
    with torch.no_grad():
        torch.testing.assert_close(predict(net, [start], images)[0], net(x))
    recipe = Recipe(epochs=1, lr=0.1, momentum=0.0, weight_decay=0.0, batch_size=len(x))
    trained = train(net, Job(start, seed=0), recipe, images)
    by_hand = copy.deepcopy(net).train()
    nn.functional.cross_entropy(by_hand(x), y).backward()
    for name, parameter in by_hand.named_parameters():
        moved = trained.state[name] - start[name]
        rate = trained.state["fc2.bias"].sub(start["fc2.bias"])[0] / by_hand.fc2.bias.grad[0]
        torch.testing.assert_close(moved, rate * parameter.grad, atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(trained.state["norm.running_mean"], by_hand.norm.running_mean)
    points = path(net, start, trained.state, (0.0, 1.0), images, "bn_reset", images)
    assert len(points) == len(evaluate(net, [start, trained.state], images)) == 2


def test_other_nets_keep_their_fast_memory(images):
    assert stack_for(models.build("resnet8", (1, 14, 14), 10), images, 64) == (Single, 1)
    shuffle = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ChannelShuffle(2), nn.Conv2d(6, 2, 3))
    assert runs_channels_last(shuffle, lambda net: net(torch.zeros(2, 1, 8, 8)))


def test_the_trial_leaves_the_net_and_the_random_numbers_alone():
    net = lenet().train()
    before, random = copy.deepcopy(net.state_dict()), torch.random.get_rng_state()
    assert not runs_channels_last(net, lambda n: n(torch.randn(2, 1, 14, 14)))
    assert net.training
    assert torch.equal(torch.random.get_rng_state(), random)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.is_contiguous()
