"""docs/recipes.md, whose tables are made from what the keys of a recipe say of themselves."""

import re
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from pydantic.fields import FieldInfo

from lemix_hpc.config.check import check_recipe
from lemix_hpc.config.load import load_recipe
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.config.validation_messages import sections_in
from scripts.reference import keys

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"


ALL_KEYS: dict[str, FieldInfo] = {}
for name, field in keys(Recipe):
    # Several kinds of a section may have a key: one of them explains it.
    if name not in ALL_KEYS or ALL_KEYS[name].description is None:
        ALL_KEYS[name] = field


@pytest.mark.parametrize("key", [key for key, field in ALL_KEYS.items() if not sections_in(field.annotation)])
def test_key_says_what_it_means(key: str) -> None:
    assert ALL_KEYS[key].description


@pytest.mark.parametrize("key", [key for key, field in ALL_KEYS.items() if get_origin(field.annotation) is Literal])
def test_every_choice_is_explained(key: str) -> None:
    field = ALL_KEYS[key]
    assert [choice for choice in get_args(field.annotation) if f"`{choice}`" not in str(field.description)] == []


def test_example_is_a_sound_recipe(tmp_path: Path) -> None:
    [example] = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    beside = tmp_path / "docs"
    beside.mkdir()
    (tmp_path / "profiling").symlink_to(DOCUMENT.parents[1] / "profiling")
    (beside / "first.yaml").write_text(example)
    assert check_recipe(load_recipe(beside / "first.yaml")) == []
