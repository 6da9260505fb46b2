"""What ships can be computed again from the settings that it names."""

from __future__ import annotations

import pytest

from rebasin_utils.chapters import lab
from rebasin_utils.study import exchange
from rebasin_utils.study.stages import dense
from rebasin_utils.study.study import Study

#: Of one net; `exchange.TOLERANCE` is what nets differ by on the average.
TOLERANCE = 3 * exchange.TOLERANCE


def test_a_net_whose_result_ships_is_trained_again(tmp_path):
    """ResNet8 on Fashion-MNIST at 14×14, the one shipped study whose images are in the package."""
    (shipped,) = lab.shipped_studies("evening-resnet8-fashion", device="cpu")
    node = dense.net(shipped.settings, "A", 0)
    record = shipped.shelf.record(node.key)
    assert record["shipped"] == "evening-resnet8-fashion"
    here = Study(shipped.settings, tmp_path / "store", "cpu")
    assert here.node("dense", role="A", seed=0) == node
    here.compute([node])
    ours = here.store.record(node.key)["metrics"]["test_accuracy"]
    assert 100 * ours == pytest.approx(100 * record["metrics"]["test_accuracy"], abs=TOLERANCE)
