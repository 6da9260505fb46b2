"""What is said about the width, on the residual nets whose results ship."""

from __future__ import annotations

import pandas as pd
import pytest

from rebasin_utils.chapters import lab, width
from rebasin_utils.errors import InputError
from rebasin_utils.study.study import Study


@pytest.fixture(scope="module")
def shipped() -> list[Study]:
    return lab.shipped_studies("evening", device="cpu")


@pytest.fixture(scope="module")
def widths(shipped) -> list[Study]:
    (studies,) = width.by_model(shipped).values()
    return studies


def accuracies(study: Study) -> pd.DataFrame:
    results = study.results()
    cell = results[(results["sparsity"] == 0.95) & (results["rewind_epoch"] == 2)]
    return cell.pivot(index="seed", columns="method", values="test_accuracy")


def test_what_ships_comes_in_the_order_of_the_presets(shipped):
    names = [study.settings.name.removeprefix("evening-") for study in shipped]
    assert names == ["resnet8", "resnet8-w2", "resnet8-fashion", "resnet8-w4", "resnet20"]


def test_the_share_of_the_gap_is_that_of_every_pair(widths):
    rows = width.of_widths(widths, 0.95, 2).set_index("claim")
    ours = rows["ours"]["π closes more of the wider net's gap from naive to LTH"]
    shares = []
    for study in (widths[0], widths[-1]):
        at = accuracies(study)
        shares.append(((at["permuted"] - at["naive"]) / (at["lth"] - at["naive"])).mean())
    assert ours.startswith(f"{100 * shares[0]:.1f} → {100 * shares[1]:.1f}: ")


def test_every_net_that_ships_has_its_rows(shipped):
    claims = width.at_every_width(shipped)["claim"]
    for study in shipped:
        s = study.settings
        assert sum(claims.str.startswith(f"{s.model.name}×{s.model.width}, {s.data.source}")) == 2


def test_a_cell_that_is_not_there_is_refused_with_those_that_are(shipped):
    width.check_cell(shipped, 0.9, 5)
    with pytest.raises(InputError, match=r"0\.97.*: 0\.9 from k = 0, 2, 5; 0\.95 from k = 0, 2, 5"):
        width.check_cell(shipped, 0.97, 2)
    with pytest.raises(InputError, match=r"rewind_epoch = 3: choose a cell that there is"):
        width.check_cell(shipped, 0.95, 3)
