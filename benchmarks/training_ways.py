"""The ways of training that `training.py` compares, and what they train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from rebasin_utils.nets import data, masks, models
from rebasin_utils.nets.data import SOURCES, Batches, Images
from rebasin_utils.nets.devices import reproducible
from rebasin_utils.training.recipes import Recipe
from rebasin_utils.training.train import Job, train_many

BATCH = 128
SPARSITY = 0.9


@dataclass(frozen=True)
class Case:
    """What is trained: a net, on how many images of which shape, for how many epochs.

    rgb: three channels, 32 × 32, cropped and flipped as CIFAR-10 is; Fashion-MNIST otherwise.
    """

    name: str
    model: str
    width: int = 1
    pool: int = 2
    rgb: bool = False
    samples: int = 10_000
    epochs: int = 1

    def net(self, seed: int = 0) -> nn.Module:
        return models.build(self.model, self.images().shape, 10, self.width, seed)

    @cache  # noqa: B019 (a few cases, as long as the process)
    def images(self) -> Images:
        images = data.load("fashion-mnist-10k", "train", 1 if self.rgb else self.pool, self.samples)
        if not self.rgb:
            return images
        pixels = F.interpolate(images.pixels.float(), size=(32, 32), mode="bilinear")
        pixels = pixels.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
        return Images(pixels, images.labels, SOURCES["cifar10"])

    @cache  # noqa: B019 (likewise)
    def job(self, seed: int) -> Job:
        state = self.net(seed).state_dict()
        mask = masks.dense_mask(state, masks.prunable(self.net()))
        keep = round((1 - SPARSITY) * masks.count(mask))
        return Job(state, seed, masks.global_magnitude(state, mask, keep))

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.epochs, lr=0.08, batch_size=BATCH)

    @property
    def trained(self) -> int:
        """Images that one run is trained on."""
        return self.epochs * (self.samples // BATCH) * BATCH


def cases(quick: bool, gpu: bool) -> list[Case]:
    """The last is a published one. A GPU gets wider nets, too, and more to do."""
    part = 2 if quick else 1
    little = dict(samples=(10_000 if gpu else 2560) // part)
    wider = [
        Case("ResNet20×4, 1 × 28 × 28", "resnet20", 4, pool=1, **little),
        Case("ResNet20×4, 3 × 32 × 32, augmented", "resnet20", 4, rgb=True, **little),
    ]
    return [
        Case("MLP, 1 × 14 × 14", "mlp", epochs=2),
        Case("ResNet8×1, 1 × 14 × 14", "resnet8", **little),
        *(wider if gpu else []),
        Case("ResNet20×1, 1 × 28 × 28", "resnet20", pool=1, **little),
        Case("ResNet20×1, 3 × 32 × 32, augmented", "resnet20", rgb=True, **little),
    ]


class PerImage(Dataset):
    """A data set as torchvision's are: one image at a time, through PIL and transforms."""

    def __init__(self, images: Images, augment: bool):
        self.pixels = images.pixels.movedim(1, -1).squeeze(-1).numpy()
        self.labels = images.labels.tolist()
        changes = [transforms.RandomCrop(images.shape[-1], padding=images.source.pad)]
        changes += [transforms.RandomHorizontalFlip()] if images.source.flip else []
        normalise = transforms.Normalize(images.source.mean, images.source.std)
        self.transform = transforms.Compose(
            [*(changes if augment else []), transforms.ToTensor(), normalise]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int):
        return self.transform(Image.fromarray(self.pixels[i])), self.labels[i]


def naive(case: Case, seeds: Sequence[int], device: str, workers: int) -> list[masks.State]:
    states = []
    for job in map(case.job, seeds):
        torch.manual_seed(job.seed)
        dataset = PerImage(case.images(), case.rgb)
        loader = DataLoader(
            dataset,
            batch_size=BATCH,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            pin_memory=device != "cpu",
        )
        net = case.net()
        net.load_state_dict(job.state)
        net.to(device)
        for name, kept in job.mask.items():
            module = net.get_submodule(name.removesuffix(".weight"))
            prune.custom_from_mask(module, "weight", kept.to(device))
        recipe = case.recipe
        optimizer = torch.optim.SGD(
            net.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay
        )
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(recipe.epochs, 1))
        for _ in range(recipe.epochs):
            running_loss = 0.0
            for images, labels in loader:
                images, labels = images.to(device), labels.to(device)
                optimizer.zero_grad()
                loss = F.cross_entropy(net(images), labels)
                loss.backward()
                optimizer.step()
                running_loss += loss.item()
            scheduler.step()
        for name in job.mask:
            prune.remove(net.get_submodule(name.removesuffix(".weight")), "weight")
        states.append({n: t.detach().cpu() for n, t in net.state_dict().items()})
    return states


def careful(case: Case, seeds: Sequence[int], device: str) -> list[masks.State]:
    states, recipe = [], case.recipe
    batches = Batches(case.images().to(device), BATCH, case.rgb)
    for job in map(case.job, seeds):
        net = case.net()
        net.load_state_dict(job.state)
        net.to(device)
        masked = [(net.get_parameter(n), kept.to(device).float()) for n, kept in job.mask.items()]
        optimizer = torch.optim.SGD(
            net.parameters(),
            recipe.lr,
            recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(recipe.epochs, 1))
        with torch.no_grad():
            for parameter, kept in masked:
                parameter.mul_(kept)
        for epoch in range(recipe.epochs):
            plan = batches.plan([job.seed], epoch)
            for step in range(batches.steps):
                (x,), (y,) = batches.at(plan, step)
                optimizer.zero_grad()
                F.cross_entropy(net(x), y).backward()
                optimizer.step()
                with torch.no_grad():
                    for parameter, kept in masked:
                        parameter.mul_(kept)
            scheduler.step()
        states.append({n: t.detach().cpu() for n, t in net.state_dict().items()})
    return states


def ours(case: Case, seeds: Sequence[int], device: str) -> list[masks.State]:
    jobs = [case.job(seed) for seed in seeds]
    images = case.images().to(device)
    with reproducible(torch.device(device)):
        done = train_many(case.net(), jobs, case.recipe, images, augment=case.rgb)
    return [trained.state for trained in done]


def convolutions_alone(case: Case, seeds: Sequence[int], device: str) -> list[masks.State]:
    """No training: a net's convolutions as often as training computes them."""
    net = case.net().to(device, memory_format=torch.channels_last)
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    calls: list[tuple[nn.Conv2d, tuple[torch.Tensor], torch.Tensor]] = []
    hooks = [c.register_forward_hook(lambda *call: calls.append(call)) for c in convolutions]
    with torch.no_grad():
        net(torch.rand(BATCH, *case.images().shape, device=device))
    for hook in hooks:
        hook.remove()
    for _ in range(len(seeds) * case.trained // BATCH):
        for i, (conv, (x,), gradient) in enumerate(calls):
            wanted = (x.requires_grad_(), conv.weight) if i else (conv.weight,)  # 0 has the images
            torch.autograd.grad(conv(x), wanted, gradient)
    return [{} for _ in seeds]
