"""Nets by name: one of the study's, torchvision's, timm's, or whatever a user's callable makes.

    resnet20                one of `models.MODELS`
    torchvision:resnet18    a classifier of torchvision's, with fresh weights
    timm:resnet18           one of timm's, where timm is installed, with fresh weights
    my_package.nets:Net     a class or function of a module that can be imported
    ./my_net.py:Net         of a file; it is executed anew whenever it was edited

The callable gets `args` as keyword arguments and, of the following, those that it names and that
are not among them: `classes` or `num_classes`, `image_shape` (channels, height, width),
`in_channels` or `in_chans`, and `width`.

A net's fingerprint is that of the source file that its callable is written in, and of the module
that it is named in. Files that these import in turn do not enter it.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, lru_cache, partial
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from rebasin_utils.errors import InputError
from rebasin_utils.nets import models
from rebasin_utils.nets.fingerprints import of_bytes

Shape = tuple[int, int, int]
NO_ARGS: Mapping[str, Any] = MappingProxyType({})
_RAISED = (Exception, SystemExit)  # whatever a user's code may end in


@dataclass(frozen=True)
class _Maker:
    """What makes a net; takes: the arguments it can be offered; sources: where it is written."""

    make: Callable[..., Any]
    takes: frozenset[str]
    sources: tuple[Path, ...]


def build(
    name: str,
    image_shape: Shape,
    classes: int,
    width: int = 1,
    seed: int = 0,
    args: Mapping[str, Any] = NO_ARGS,
    not_prunable: Sequence[str] = (),
) -> nn.Module:
    """A freshly initialised net; the init depends on `seed` alone.

    Args:
        name: as above.
        image_shape: (channels, height, width) of one input image.
        classes: number of logits.
        width: multiplier; of a user's own net only where its callable takes it.
        args: keyword arguments of the callable.
        not_prunable: names of weights that pruning leaves out, or patterns of names
            ("*.downsample.*"), beside those that the net itself has in its `not_prunable`.

    Raises:
        InputError: when there is no such net, it cannot be made from these arguments or is no
            `nn.Module`, it takes no width, or a pattern fits no weight.
    """
    if name in models.MODELS:
        if args:
            raise InputError(f"model.args = {dict(args)}: {name} takes a width and nothing else")
        model = models.build(name, image_shape, classes, width, seed)
    else:
        model = _made(name, image_shape, classes, width, seed, args)
    if not_prunable:
        own = getattr(model, "not_prunable", ())
        model.not_prunable = (*own, *_matching(not_prunable, model))
    return model


def check(
    name: str,
    image_shape: Shape,
    classes: int,
    width: int = 1,
    args: Mapping[str, Any] = NO_ARGS,
) -> None:
    """Refuse a user's own net that cannot be studied; the study's own are only built.

    It is made three times and run on two images of noise, in training and in evaluation.

    Raises:
        InputError: what `build` refuses; a net without weights or with weights that wait for a
            first input, that fails on such images or does not answer with one tensor
            [batch, classes], whose init depends on more than the seed, or not on the seed.
    """
    first = build(name, image_shape, classes, width, 0, args)
    if name in models.MODELS:
        return
    where = f"model.name = {name!r}"
    weights = dict(first.named_parameters())
    if not weights:
        raise InputError(f"{where}: it has no weights")
    lazy = [n for n, w in weights.items() if isinstance(w, nn.parameter.UninitializedParameter)]
    if lazy:
        raise InputError(f"{where}: {lazy[0]} has no shape before the first input; give it one")
    again = build(name, image_shape, classes, width, 0, args)
    other = build(name, image_shape, classes, width, 1, args)
    changed = _differing(weights, dict(again.named_parameters()))
    if changed:
        raise InputError(
            f"{where}: made twice from one seed, {changed[0]} differs; it must draw from torch's "
            "own random numbers, and from no others"
        )
    if not _differing(weights, dict(other.named_parameters())):
        raise InputError(
            f"{where}: two seeds give the same weights; it must neither load weights nor set a "
            "seed of its own"
        )
    for training in (True, False):
        _check_answer(again.train(training), where, image_shape, classes)


def fingerprint(name: str) -> str | None:
    """Of the source files of a net; None of the study's own.

    Raises:
        InputError: when there is no such net, it is written in no file, or its module was edited
            after this process imported it.
    """
    if name in models.MODELS:
        return None
    sources = _maker(name).sources
    if not sources:
        raise InputError(f"model.name = {name!r}: it is written in no source file")
    current = _of_sources(sources)
    is_module = ".py:" not in name
    if is_module and current != _when_imported(sources):
        raise InputError(
            f"model.name = {name!r}: {sources[0]} was edited after it was imported; start this "
            "process (or kernel) anew"
        )
    return current


def _made(
    name: str, image_shape: Shape, classes: int, width: int, seed: int, args: Mapping[str, Any]
) -> nn.Module:
    maker = _maker(name)
    channels = image_shape[0]
    offered = dict(classes=classes, num_classes=classes, image_shape=image_shape, width=width)
    offered |= dict(in_channels=channels, in_chans=channels)
    if width != 1 and "width" not in maker.takes:
        raise InputError(f"model.width = {width}: {name} takes no width")
    given = {n: value for n, value in offered.items() if n in maker.takes} | dict(args)
    said = ", ".join(f"{n}={value!r}" for n, value in given.items())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = maker.make(**given)
        except _RAISED as error:
            raise InputError(
                f"model.name = {name!r}: called with ({said}), it raised {_reason(error)}"
            ) from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model.name = {name!r}: it made a {type(model).__name__}; must be a torch.nn.Module"
        )
    return model


def _check_answer(model: nn.Module, where: str, image_shape: Shape, classes: int) -> None:
    shape = " × ".join(map(str, image_shape))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        try:
            logits = model(torch.randn(2, *image_shape))
        except _RAISED as error:
            raise InputError(
                f"{where}: it fails on images of {shape} with {_reason(error)}"
            ) from error
    if not isinstance(logits, Tensor):
        mode = "training" if model.training else "evaluation"
        raise InputError(
            f"{where}: in {mode} it answers with a {type(logits).__name__}; must be one tensor "
            "[batch, classes]"
        )
    if logits.shape != (2, classes):
        raise InputError(
            f"{where}: it answers 2 images with a tensor {list(logits.shape)}; must be [batch, "
            f"classes], [2, {classes}]; where it takes neither classes nor num_classes, say how "
            "many there are in model.args"
        )


def _maker(name: str) -> _Maker:
    place, colon, attribute = name.rpartition(":")
    where = f"model.name = {name!r}"
    if not (colon and place and attribute):
        raise InputError(
            f"{where}: choose one of {', '.join(models.MODELS)}, or give torchvision:resnet18, "
            "timm:resnet18, module:callable or ./file.py:callable"
        )
    if place == "torchvision":
        return _of_torchvision(attribute, where)
    if place == "timm":
        return _of_timm(attribute, where)
    if place.endswith(".py"):
        path = Path(place).expanduser().resolve()
        return _of_callable(_executed(path, where), attribute, (path,), where)
    module = _imported(place, where)
    sources = (Path(module.__file__),) if getattr(module, "__file__", None) else ()
    return _of_callable(module, attribute, sources, where)


def _of_torchvision(net: str, where: str) -> _Maker:
    from torchvision import models as zoo

    there = zoo.list_models(module=zoo)
    if net not in there:
        raise InputError(f"{where}: torchvision has no such classifier{_close(net, there)}")
    builder = zoo.get_model_builder(net)
    return _Maker(builder, frozenset({"num_classes"}), _source_of(builder))


def _of_timm(net: str, where: str) -> _Maker:
    try:
        import timm
    except ImportError as error:
        raise InputError(f"{where}: timm is not installed; pip install timm") from error
    if not timm.is_model(net):
        raise InputError(f"{where}: timm has no such net{_close(net, timm.list_models())}")
    make, sources = partial(timm.create_model, net), _source_of(timm.model_entrypoint(net))
    return _Maker(make, frozenset({"num_classes", "in_chans"}), sources)


def _of_callable(
    module: ModuleType, attribute: str, sources: tuple[Path, ...], where: str
) -> _Maker:
    make = getattr(module, attribute, None)
    if not callable(make):
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", 0) == module.__name__]
        raise InputError(
            f"{where}: {attribute} is no class or function in it; there are "
            f"{', '.join(own) or 'none'}"
        )
    try:
        parameters = inspect.signature(make).parameters.values()
    except ValueError:  # built in
        parameters = ()
    takes = frozenset(
        p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    )
    written = _source_of(make)
    return _Maker(make, takes, tuple(dict.fromkeys((*sources, *written))))


def _source_of(make: Callable) -> tuple[Path, ...]:
    """The file that a class or function is written in; none of what is built in."""
    try:
        return (Path(inspect.getsourcefile(inspect.unwrap(make))),)
    except TypeError:
        return ()


def _imported(module: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except _RAISED as error:
        raise InputError(f"{where}: importing {module} raised {_reason(error)}") from error


def _executed(path: Path, where: str) -> ModuleType:
    try:
        source = path.read_bytes()
    except OSError as error:
        raise InputError(f"{where}: {path} cannot be read ({error.strerror})") from error
    try:
        return _module(path, source)
    except _RAISED as error:
        raise InputError(f"{where}: executing {path} raised {_reason(error)}") from error


@lru_cache(maxsize=64)
def _module(path: Path, source: bytes) -> ModuleType:
    """The file as a module, an edited one as another; no bytecode is left beside it."""
    module = ModuleType(f"rebasin_own_{of_bytes(str(path).encode(), source)}")
    module.__file__ = str(path)
    code = compile(source, str(path), "exec", dont_inherit=True)
    sys.modules[module.__name__] = module  # dataclasses and pickle look there
    try:
        exec(code, vars(module))
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


def _of_sources(sources: Iterable[Path]) -> str:
    return of_bytes(*(source.read_bytes() for source in sources))


@cache
def _when_imported(sources: tuple[Path, ...]) -> str:
    """What the sources of an imported module were when they were first asked for."""
    return _of_sources(sources)


def _matching(patterns: Sequence[str], model: nn.Module) -> list[str]:
    names = [name for name, _ in model.named_parameters()]
    found = {p: [name for name in names if fnmatchcase(name, p)] for p in patterns}
    for pattern, fitting in found.items():
        if not fitting:
            raise InputError(
                f"model.not_prunable = {pattern!r}: fits no weight{_close(pattern, names)}"
            )
    return [name for name in names if any(name in fitting for fitting in found.values())]


def _differing(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    return [
        n for n, tensor in first.items() if n not in second or not torch.equal(tensor, second[n])
    ]


def _close(name: str, there: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, there, n=3)
    return f"; there is {', '.join(close)}" if close else ""


def _reason(error: BaseException) -> str:
    """Kind and first line of what was raised."""
    line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
