"""Recipes, as a program gives them: a file, changes by key, or what was loaded before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import LoadedRecipe, read_recipe

Given = str | Path | LoadedRecipe
Changes = Mapping[str, Any]


def load(path: str | Path, changes: Changes | None = None) -> LoadedRecipe:
    """Read a recipe, changed as by `--set`: `load("recipe.yaml", {"nodes.count": 4})`.

    Its keys are those of `.recipe`, with every default filled in. Raises UserError with a line for each mistake.
    """
    return read_recipe(Path(path), [_setting(key, value) for key, value in (changes or {}).items()])


def loaded(recipe: Given, changes: Changes | None) -> LoadedRecipe:
    """The recipe of a call. Raises UserError for changes of one that was loaded before: its defaults are filled in already."""
    if not isinstance(recipe, LoadedRecipe):
        return load(recipe, changes)
    if changes:
        raise UserError("changes: this recipe has been loaded; give the changes to `load`, or the file here")
    return recipe


def _setting(key: str, value: Any) -> str:
    try:
        # JSON is YAML, too.
        return f"{key}={json.dumps(value, default=_plain)}"
    except TypeError as error:
        raise UserError(f"{key}: {error}; give text, numbers, lists and dictionaries") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} cannot stand in a recipe")
