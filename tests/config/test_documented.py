"""docs/recipes.md names every key of a recipe with its default."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lemix_hpc.config.check import check_recipe
from lemix_hpc.config.load import load_recipe
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.config.validation_messages import sections_in

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"


def keys(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        inner = sections_in(field.annotation)
        yield ".".join((*path, name)), field
        for section in inner:
            yield from keys(section, (*path, name))


ALL_KEYS = dict(keys(Recipe))


@pytest.mark.parametrize("key", ALL_KEYS)
def test_key_is_documented(key: str) -> None:
    assert f"`{key}`" in DOCUMENT.read_text()


def test_only_real_keys_are_documented() -> None:
    documented = re.findall(r"^\| `([a-z_.0-9]+)` \|", DOCUMENT.read_text(), re.MULTILINE)
    assert set(documented) <= set(ALL_KEYS)


VALUES = [key for key, field in ALL_KEYS.items() if not sections_in(field.annotation)]


@pytest.mark.parametrize("key", VALUES)
def test_default_is_right(key: str) -> None:
    [shown] = re.findall(rf"^\| `{re.escape(key)}` \| ([^|]*)\|", DOCUMENT.read_text(), re.MULTILINE)
    field = ALL_KEYS[key]
    if field.is_required():
        assert shown.strip() == "*required*"
    elif field.default is None:
        assert shown.strip() == ""
    else:
        default = str(field.default)
        assert shown.strip() == f"`{default.lower() if isinstance(field.default, bool) else default}`"


def test_example_is_a_sound_recipe(tmp_path: Path) -> None:
    [example] = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    beside = tmp_path / "docs"
    beside.mkdir()
    (tmp_path / "profiling").symlink_to(DOCUMENT.parents[1] / "profiling")
    (beside / "first.yaml").write_text(example)
    assert check_recipe(load_recipe(beside / "first.yaml")) == []
