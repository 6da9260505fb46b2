"""The students' edition holds nothing that they are to find, and all that they need."""

from __future__ import annotations

import nbformat
import pytest
from command import rebasin

from rebasin_utils.errors import InputError
from rebasin_utils.running import editions, notebooks

ALL = notebooks.all_notebooks()


@pytest.fixture(params=ALL, ids=lambda n: n.name)
def both(request) -> tuple:
    whole = nbformat.read(request.param.path, as_version=4)
    return whole, editions.of_students(whole)


def test_there_are_no_outputs_no_solutions_and_no_guesses(both):
    whole, edition = both
    nbformat.validate(edition)
    for cell in edition.cells:
        assert not cell.get("outputs")
        assert "solution" not in cell.metadata.get("tags", [])
        assert not cell.source.rstrip().endswith("A solution to the second:")
        for name in editions.guesses(cell.source) if cell.cell_type == "code" else []:
            assert f"{name} = ..." in cell.source
    assert any(cell.get("outputs") for cell in whole.cells)  # which stay where they were


def test_everything_else_is_there(both):
    whole, edition = both
    kept = {c.id: c.source for c in edition.cells}
    for cell in whole.cells:
        solved = "solution" in cell.metadata.get("tags", [])
        guessed = cell.cell_type == "code" and editions.guesses(cell.source)
        assert (cell.id in kept) != solved
        if cell.cell_type == "code" and not solved and not guessed:
            assert kept[cell.id] == cell.source


def test_every_notebook_has_a_solution_and_most_a_prediction():
    tags = [nbformat.read(n.path, as_version=4).cells for n in ALL]
    solved = [any("solution" in c.metadata.get("tags", []) for c in cells) for cells in tags]
    guessed = [
        any(editions.guesses(c.source) for c in cells if c.cell_type == "code") for cells in tags
    ]
    assert all(solved)
    assert sum(guessed) >= len(ALL) - 2


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("my_guess = 3", ["my_guess"]),
        ("my_guess_a, my_guess_b = 1, 2", ["my_guess_a", "my_guess_b"]),
        ("my_guess = 3\nprint(my_guess)", []),
        ("my_guess = 3\nother = 4", []),
        ("", []),
    ],
)
def test_a_prediction_names_guesses_and_does_nothing_else(source, names):
    assert editions.guesses(source) == names


def test_the_command_writes_them_once_and_never_over_what_is_there(tmp_path):
    done = rebasin("notebooks", "editions", str(tmp_path / "class"), "04")
    assert done.returncode == 0
    file, beside = sorted((tmp_path / "class").iterdir())
    assert (file.name, beside.name) == ("04-naive-permuted-lth.ipynb", "glossary.md")
    before = file.read_bytes()
    with pytest.raises(InputError, match="is there already; nothing was written"):
        editions.write(ALL, tmp_path / "class")
    assert file.read_bytes() == before
    assert len(list((tmp_path / "class").iterdir())) == 2
