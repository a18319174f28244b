"""The reference pages say what the code does."""

from pathlib import Path

import pytest

from scripts.pictures import PICTURES, write_ranks
from scripts.reference import pages


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_the_page_is_current(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == pages()[page], "run `python scripts/reference.py`"


def test_the_figure_of_ranks_is_current(tmp_path: Path) -> None:
    write_ranks(tmp_path / "ranks.svg")
    assert (tmp_path / "ranks.svg").read_text() == (PICTURES / "ranks.svg").read_text(), (
        "run `python scripts/pictures.py`"
    )
