"""A net from anywhere is built from its name and a seed, and refused where it cannot be studied."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from rebasin_utils.errors import InputError
from rebasin_utils.nets import masks, models, own_nets

SHAPE = (1, 8, 8)

NET = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class Sizes:
    hidden: int = 6

class Net(nn.Module):
    def __init__(self, image_shape, num_classes, width=1, hidden=Sizes().hidden):
        super().__init__()
        units = hidden * width
        self.first = nn.Linear(image_shape[0] * image_shape[1] * image_shape[2], units)
        self.last = nn.Linear(units, num_classes)

    def forward(self, x):
        return self.last(torch.relu(self.first(x.flatten(1))))

def flat(classes: int, in_channels: int):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 64, classes))
"""


@pytest.fixture
def file(tmp_path) -> Path:
    (tmp_path / "my_net.py").write_text(NET)
    return tmp_path / "my_net.py"


def same(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def refused(call, begin: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as raised:
        call()
    sentence = str(raised.value)
    assert sentence.startswith(begin)
    assert "\n" not in sentence
    for part in parts:
        assert part in sentence


# -------------------------------------------------------------------------- built


def test_a_net_of_a_file_is_told_what_it_takes(file):
    net = own_nets.build(f"{file}:Net", (3, 8, 8), 5, width=2, args={"hidden": 4})
    assert net.first.weight.shape == (8, 192)
    assert net.last.weight.shape == (5, 8)
    flat = own_nets.build(f"{file}:flat", SHAPE, 7)
    assert flat[1].weight.shape == (7, 64)
    own_nets.check(f"{file}:Net", (3, 8, 8), 5, width=2)
    own_nets.check(f"{file}:flat", SHAPE, 7)


def test_nothing_is_left_beside_a_users_file(file):
    own_nets.build(f"{file}:Net", SHAPE, 3)
    assert list(file.parent.iterdir()) == [file]


def test_a_net_of_a_module_is_found(file, monkeypatch):
    monkeypatch.syspath_prepend(file.parent)
    net = own_nets.build("my_net:Net", SHAPE, 3)
    assert net.last.out_features == 3
    monkeypatch.delitem(sys.modules, "my_net")


def test_the_studys_own_nets_are_built_as_before():
    for name in models.MODELS:
        shape = (1, 16, 16)
        assert same(own_nets.build(name, shape, 3, 1, 5), models.build(name, shape, 3, 1, 5))
        own_nets.check(name, shape, 3)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18"])
def test_the_nets_of_libraries_are_built_fresh_with_our_classes(name):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    net = own_nets.build(name, (3, 32, 32), 7, seed=1).eval()
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert same(net, own_nets.build(name, (3, 32, 32), 7, seed=1))
    assert not same(net, own_nets.build(name, (3, 32, 32), 7, seed=2))
    own_nets.check(name, (3, 32, 32), 7)
    assert len(own_nets.fingerprint(name)) == 16


def test_timm_nets_take_grey_images():
    pytest.importorskip("timm")
    own_nets.check("timm:resnet18", (1, 32, 32), 3)


def test_timm_is_asked_for_where_it_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    name = "timm:resnet18"
    refused(
        lambda: own_nets.build(name, SHAPE, 3), f"model.name = {name!r}: ", ["pip install timm"]
    )


@pytest.mark.parametrize("name", ["{}:Net", "torchvision:resnet18"])
def test_an_init_depends_on_its_seed_alone(file, name):
    name, shape = name.format(file), (3, 16, 16)
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    net = own_nets.build(name, shape, 3, seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(9)
    assert same(net, own_nets.build(name, shape, 3, seed=4))
    assert not same(net, own_nets.build(name, shape, 3, seed=5))


def test_what_is_not_prunable_is_named_or_fits_a_pattern():
    net = own_nets.build(
        "torchvision:resnet18", (3, 32, 32), 3, not_prunable=["conv1.weight", "*.downsample.0.*"]
    )
    shortcuts = {f"layer{i}.0.downsample.0.weight" for i in (2, 3, 4)}
    left_out = {"conv1.weight", *shortcuts}
    assert set(net.not_prunable) == left_out
    assert not left_out & set(masks.prunable(net))
    ours = own_nets.build("resnet8", (1, 16, 16), 3, not_prunable=["stem.*"])
    assert set(ours.not_prunable) > set(models.build("resnet8", (1, 16, 16), 3).not_prunable)
    assert {"stem.conv.weight"} <= set(ours.not_prunable)


# -------------------------------------------------------------------------- fingerprints


def test_an_edited_file_is_another_net_in_the_same_process(file):
    name = f"{file}:Net"
    before, net = own_nets.fingerprint(name), own_nets.build(name, SHAPE, 3)
    assert own_nets.fingerprint(name) == before
    file.write_text(NET.replace("hidden: int = 6", "hidden: int = 5"))
    assert own_nets.fingerprint(name) != before
    assert net.first.out_features == 6
    assert own_nets.build(name, SHAPE, 3).first.out_features == 5


def test_a_copied_file_has_the_same_fingerprint(file, tmp_path):
    copy = tmp_path / "elsewhere" / "other_name.py"
    copy.parent.mkdir()
    copy.write_text(NET)
    assert own_nets.fingerprint(f"{copy}:Net") == own_nets.fingerprint(f"{file}:Net")


def test_where_a_net_is_written_counts_and_not_only_where_it_is_named(file, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for i, text in enumerate((NET, NET.replace("= 6", "= 5"))):
        (tmp_path / f"written_{i}.py").write_text(text)
        named = tmp_path / f"named_{i}" / "same_name.py"
        named.parent.mkdir()
        named.write_text("import importlib, pathlib\n"
                         "number = pathlib.Path(__file__).parent.name[-1]\n"
                         "Net = importlib.import_module('written_' + number).Net\n")  # fmt: skip
        found.append(own_nets.fingerprint(f"{named}:Net"))
    assert found[0] != found[1]


def test_a_module_that_was_edited_after_its_import_is_refused(file, monkeypatch, tmp_path):
    (tmp_path / "imported_net.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    own_nets.fingerprint("imported_net:Net")
    (tmp_path / "imported_net.py").write_text(NET + "# edited\n")
    parts = ["imported_net.py was edited after it was imported"]
    refused(lambda: own_nets.fingerprint("imported_net:Net"), "model.name = ", parts)


def test_the_studys_own_nets_have_no_fingerprint():
    assert all(own_nets.fingerprint(name) is None for name in models.MODELS)


# -------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("resnet21", ["choose one of mlp, resnet8", "module:callable"]),
        (":Net", ["choose one of mlp, resnet8"]),
        ("torchvision:resnet19", ["no such classifier", "resnet18"]),
        ("torchvision:fasterrcnn_resnet50_fpn", ["no such classifier"]),
        ("no_such_module:Net", ["importing no_such_module raised ModuleNotFoundError"]),
        ("{dir}/nowhere.py:Net", ["nowhere.py cannot be read", "No such file"]),
        ("{file}:Nets", ["Nets is no class or function", "there are Sizes, Net, flat"]),
        ("{file}:torch", ["torch is no class or function"]),
        ("math:sin", ["called with (), it raised TypeError"]),
    ],
)
def test_a_net_that_is_not_there_is_refused(file, name, parts):
    name = name.format(file=file, dir=file.parent)
    refused(lambda: own_nets.build(name, SHAPE, 3), f"model.name = {name!r}: ", parts)


BODY = "import torch, numpy, random, sys\nfrom torch import nn\n"


def a_net(init: str = "", answer: str = "self.layer(x.flatten(1))", takes: str = "classes") -> str:
    return (
        f"{BODY}class Net(nn.Module):\n    def __init__(self, {takes}):\n"
        f"        super().__init__()\n        self.layer = nn.Linear(64, 3)\n        {init}\n"
        f"    def forward(self, x):\n        return {answer}\n"
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("import no_such_module", ["executing", "ModuleNotFoundError: No module named"]),
        ("x = (", ["SyntaxError", "line 1"]),
        ("raise SystemExit('usage: train.py\\nDATA')", ["raised SystemExit: usage: train.py"]),
        (f"{BODY}def Net(): raise KeyError('a\\nb')", ["called with ()", "KeyError"]),
        (f"{BODY}def Net(classes, depth): pass", ["called with (classes=3)", "depth"]),
        (f"{BODY}def Net(): return 7", ["made a int", "torch.nn.Module"]),
        (f"{BODY}def Net(): return nn.Flatten()", ["has no weights"]),
        (f"{BODY}def Net(): return nn.LazyLinear(3)", ["weight has no shape before the first"]),
        (a_net(answer="self.layer(x)"), ["fails on images of 1 × 8 × 8 with RuntimeError"]),
        (a_net(answer="[x]"), ["in training it answers with a list"]),
        (a_net(answer="self.layer(x.flatten(1)) if self.training else (x,)"),
         ["in evaluation it answers with a tuple"]),
        (a_net(answer="x"), ["answers 2 images with a tensor [2, 1, 8, 8]", "[2, 3]"]),
        (a_net("self.layer = nn.Linear(64, 1000)", takes="**options"), ["[2, 1000]", "model.args"]),
        (a_net("self.layer.weight.data += numpy.random.rand()"),
         ["twice from one seed", "layer.weight"]),
        (a_net("torch.manual_seed(0); self.layer = nn.Linear(64, 3)"), ["two seeds give the same"]),
    ],
)  # fmt: skip
def test_a_net_that_cannot_be_studied_is_refused_in_a_sentence(tmp_path, text, parts):
    (tmp_path / "bad.py").write_text(text)
    name = f"{tmp_path / 'bad.py'}:Net"
    before = torch.random.get_rng_state()
    refused(lambda: own_nets.check(name, SHAPE, 3), f"model.name = {name!r}: ", parts)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_arguments_that_do_not_fit_are_refused(file):
    build, net = own_nets.build, f"{file}:Net"
    args = {"depth": 3}
    refused(lambda: build("mlp", SHAPE, 3, args=args), "model.args = {'depth': 3}: ", ["mlp"])
    for name in (f"{file}:flat", "torchvision:resnet18"):
        refused(lambda n=name: build(n, SHAPE, 3, 2), "model.width = 2: ", ["takes no width"])
    args = {"hiden": 3}
    parts = ["called with (num_classes=3, image_shape=(1, 8, 8), width=1, hiden=3)", "TypeError"]
    refused(lambda: build(net, SHAPE, 3, args=args), f"model.name = {net!r}: ", parts)
    patterns, begin = ["first.*", "frist.weight"], "model.not_prunable = 'frist.weight': "
    parts = ["fits no weight", "first.weight"]
    refused(lambda: build(net, SHAPE, 3, not_prunable=patterns), begin, parts)


def test_a_net_that_is_written_in_no_file_is_refused():
    parts = ["written in no source file"]
    refused(lambda: own_nets.fingerprint("builtins:dict"), "model.name = 'builtins:dict': ", parts)
