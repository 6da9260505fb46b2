"""The published tables as frames."""

from __future__ import annotations

from rebasin_utils.chapters import published


def test_the_table_of_imagenet_has_two_metrics():
    one, five = (published.grid("resnet50", 1, "imagenet", metric) for metric in ("top1", "top5"))
    assert one.net == "ResNet50×1, ImageNet"
    assert list(one.means.columns) == ["lth", "naive", "permuted"]
    assert one.means.loc[(0.95, 25)].tolist() == [68.07, 60.77, 62.77]
    assert five.means.loc[(0.95, 25)].tolist() == [88.25, 83.58, 84.79]
    assert len(one.means) == len(five.means) == 9
