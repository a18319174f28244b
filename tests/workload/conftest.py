import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Time limits per example would fail on a busy machine.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture
def trial_data() -> Path:
    """The folder of published traces that are not part of the project."""
    beside_the_repository = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("LEMIX_TRIAL_DATA", beside_the_repository))
    if not folder.is_dir():
        pytest.skip(f"no trial data in {folder}; set LEMIX_TRIAL_DATA to the folder that holds them")
    return folder


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes each argument as one JSON line, strings as they are, and returns the file's path."""

    def write(*lines: Any, name: str = "lines.jsonl") -> Path:
        path = tmp_path / name
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("".join(f"{text}\n" for text in texts))
        return path

    return write
