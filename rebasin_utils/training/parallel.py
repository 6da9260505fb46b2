"""One network that several ranks train: torch's DistributedDataParallel, with `Single`'s face.

Every rank computes the gradient of its part of a batch; they are averaged while the backward pass
goes on, so that all ranks take the same step. Batch norm sees the whole batch (synchronised), or
groups of it, as in the released ImageNet runs, where every GPU normalised its own part.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from rebasin_utils.errors import InputError
from rebasin_utils.nets.masks import State
from rebasin_utils.training.ranks import Ranks
from rebasin_utils.training.recipes import Recipe
from rebasin_utils.training.stacking import Single


class Parallel(Single):
    """One network, of whose batches this rank has a part.

    Raises:
        InputError: when the ranks cannot divide a batch, or the groups of its batch norm.
    """

    def __init__(
        self,
        model: nn.Module,
        states: Sequence[State],
        device: torch.device,
        recipe: Recipe,
        ranks: Ranks,
    ):
        require_parts(recipe, ranks.size)
        groups = max(recipe.batch_norm_groups // ranks.size, 1)
        super().__init__(model, states, device, groups, recipe.precision)
        self._ranks = ranks
        if recipe.batch_norm_groups == 1:
            self.module = _synchronised(self.module)
        devices = [device] if device.type == "cuda" else None
        # Running statistics are the first rank's: it hands them out before every forward pass.
        self._shared = DistributedDataParallel(self.module, devices)

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        losses = super().losses(x, y)
        self._ranks.sum(losses)
        return losses / self._ranks.size

    def _backward(self, x: Tensor, y: Tensor, last: bool = True) -> Tensor:
        with nullcontext() if last else self._shared.no_sync():
            return super()._backward(x, y, last)

    def _forward(self, x: Tensor) -> Tensor:
        return self._shared(x)


def require_parts(recipe: Recipe, size: int, what: str = "recipe") -> None:
    """Refuse a batch, or groups of batch norm, that so many ranks cannot share equally."""
    if recipe.batch_size % size:
        raise InputError(
            f"{what}.batch_size = {recipe.batch_size}: must be a multiple of the {size} ranks"
        )
    if recipe.batch_norm_groups > 1 and recipe.batch_norm_groups % size:
        raise InputError(
            f"{what}.batch_norm_groups = {recipe.batch_norm_groups}: must be 1, for batch norm "
            f"over all ranks, or a multiple of the {size} ranks"
        )


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all ranks, and of what comes back to it."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return _Sum.forward(ctx, g)


class _Synchronised(_BatchNorm):
    """Batch norm over the batches of all ranks, where torch's `SyncBatchNorm` needs GPUs."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        over = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        sums = torch.cat([x.sum(over), x.new_tensor([x.numel() / x.shape[1]])])
        sums = _Sum.apply(sums)
        n = sums[-1].detach()
        mean = sums[:-1] / n
        centred = x - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(over)) / n
        if self.track_running_stats:
            self._move_running_statistics(mean.detach(), variance.detach() * n / (n - 1))
        scaled = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is None:
            return scaled
        return scaled * self.weight.view(shape) + self.bias.view(shape)

    @torch.no_grad()
    def _move_running_statistics(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked += 1
        momentum = self.momentum
        if momentum is None:  # a cumulative mean
            momentum = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def _synchronised(module: nn.Module) -> nn.Module:
    """The module, its batch norms now over all ranks."""
    if next(module.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.__class__ = _Synchronised
    return module
