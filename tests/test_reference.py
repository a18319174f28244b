"""The reference pages say what the code does."""

from pathlib import Path

import pytest

from scripts.reference import pages


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_the_page_is_current(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == pages()[page], "run `python scripts/reference.py`"
