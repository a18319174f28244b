"""Read a recipe from YAML, with overrides from the command line; report all of its mistakes at once, each with its line."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from lemix_hpc.config.check import check_paths
from lemix_hpc.config.document import Dumper, KeyPath, parse_document
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.plain_values import unusable
from lemix_hpc.config.problem import Problem
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.config.text_file import read_text
from lemix_hpc.config.validation_messages import explain, show

SectionT = TypeVar("SectionT", bound=BaseModel)


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and where its keys were given."""

    recipe: Recipe
    source: str
    places: Mapping[KeyPath, str]

    def located(self, problem: Problem) -> str:
        return located(problem, self.source, self.places)

    def reject(self, problems: Sequence[Problem]) -> None:
        """Raises UserError if there are any problems."""
        if problems:
            raise UserError("\n".join(self.located(problem) for problem in problems))


@dataclass(frozen=True, slots=True)
class Override:
    """A key with its value, such as `nodes.count=4`. `base`: what a relative path in it is taken from."""

    text: str
    base: Path = Path()


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, changed by `overrides` such as `nodes.count=4`.

    Relative paths in the file are taken from its directory, those of overrides from the current one. Raises UserError with
    one line for each mistake.
    """
    return read_recipe(path, overrides).recipe


def read_recipe(path: Path, overrides: Sequence[str | Override] = ()) -> LoadedRecipe:
    """As `load_recipe`, with the places of the keys, for later checks that report mistakes too."""
    source = str(path)
    document = parse_document(_text(path), source)
    if document.data is None:
        raise UserError(f"{source}: the recipe is empty; it needs at least a `serving` or a `training` section")
    if not isinstance(document.data, dict):
        raise UserError(f"{source}:1: a recipe is a set of sections such as `serving:`, found {show(document.data)}")
    places = {key: f"{source}:{line}" for key, line in document.lines.items()}
    problems = [
        f"{source}:{line}: {'.'.join(map(str, key))}: given twice; the first is on line {first}"
        for key, line, first in document.duplicates
    ]
    changes = [Override(change) if isinstance(change, str) else change for change in overrides]
    overridden = {_apply(change.text, document.data, places): change.base for change in changes}
    found = list(unusable(document.data))
    known = {problem.path for problem in found}
    recipe = None
    try:
        recipe = Recipe.model_validate(document.data)
    except ValidationError as error:
        details = error.errors(include_url=False)
        # A default that depends on a key with a mistake is none of its own.
        own = [detail for detail in details if detail["type"] != "default_factory_not_called"]
        explained = [explain(detail, document.data, Recipe) for detail in own]
        found += [problem for problem in explained if problem.path not in known]
        found += _paths_of_the_rest(document.data, found, path.parent, overridden)
    problems += [located(problem, source, places) for problem in found]
    if problems or recipe is None:
        raise UserError("\n".join(problems))
    loaded = LoadedRecipe(_with_absolute_paths(recipe, (), path.parent, overridden), source, places)
    # A relative path may be one only together with the directory of the recipe.
    loaded.reject(list(unusable(loaded.recipe.model_dump(mode="json"))))
    return loaded


def _paths_of_the_rest(
    data: dict[str, Any], found: Sequence[Problem], base: Path, overridden: Mapping[KeyPath, Path]
) -> list[Problem]:
    """What is wrong with the paths of a recipe whose other mistakes are left out, as far as it is one without them."""
    rest = copy.deepcopy(data)
    for problem in sorted(found, key=lambda problem: len(problem.path), reverse=True):
        _remove(rest, problem.path)
    try:
        recipe = Recipe.model_validate(rest)
    except ValidationError:
        return []
    return list(check_paths(_with_absolute_paths(recipe, (), base, overridden)))


def _remove(data: Any, path: KeyPath) -> None:
    for step in path[:-1]:
        inside = step in data if isinstance(data, dict) else isinstance(data, list) and isinstance(step, int)
        data = data[step] if inside else None
    if isinstance(data, dict) and path:
        data.pop(path[-1], None)


def resolved_yaml(recipe: Recipe) -> str:
    """The recipe with every default spelled out; `load_recipe` reads it back to an equal recipe."""
    return _yaml(recipe.model_dump(mode="json"))


def chosen_yaml(recipe: Recipe) -> str:
    """What of it is not the default: as long as what a person wrote; `load_recipe` reads it back to an equal recipe, too."""
    return _yaml(recipe.model_dump(mode="json", exclude_defaults=True, exclude_unset=True))


def _yaml(data: dict[str, Any]) -> str:
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, width=120, allow_unicode=True)


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such recipe file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _apply(override: str, data: dict[str, Any], places: dict[KeyPath, str]) -> KeyPath:
    """Set one `key.path=value` in `data` in place. Returns the key path."""
    label = f"--set {override}"
    name, equals, value = override.partition("=")
    path = tuple(name.strip().split("."))
    if not equals or not all(path):
        raise UserError(f"{label}: write it as section.key=value, such as nodes.count=4")
    if re.search(r"\bapi_key\b", override):
        raise UserError(
            "--set serving.http.api_key: everybody on this host can read command lines; put the key into the environment as "
            "LEMIX_API_KEY, or into a file of mode 600 and set serving.http.api_key_file"
        )
    section = data
    for depth, step in enumerate(path[:-1], start=1):
        if section.get(step) is None:
            section[step] = {}
            places[path[:depth]] = label
        section = section[step]
        if not isinstance(section, dict):
            raise UserError(f"{label}: {'.'.join(path[:depth])} is {show(section)}, not a section with keys")
    section[path[-1]] = parse_document(value, label).data
    # What stood below the key is gone, and so are its lines.
    for old in [key for key in places if key[: len(path)] == path]:
        del places[old]
    places[path] = label
    return path


def located(problem: Problem, source: str, places: Mapping[KeyPath, str]) -> str:
    """The problem behind the place of its key, or of the nearest section around it that is written down."""
    for length in range(len(problem.path), 0, -1):
        if problem.path[:length] in places:
            return f"{places[problem.path[:length]]}: {problem.key}: {problem.text}"
    return f"{source}: {problem.key}: {problem.text}" if problem.path else f"{source}: {problem.text}"


def _with_absolute_paths(section: SectionT, path: KeyPath, base: Path, overridden: Mapping[KeyPath, Path]) -> SectionT:
    changed: dict[str, Any] = {}
    for name, value in section:
        here = (*path, name)
        if isinstance(value, BaseModel):
            changed[name] = _with_absolute_paths(value, here, base, overridden)
        elif isinstance(value, list):
            changed[name] = [
                _with_absolute_paths(item, (*here, index), base, overridden)
                if isinstance(item, BaseModel)
                else _absolute(item, here, base, overridden)
                for index, item in enumerate(value)
            ]
        elif isinstance(value, Path):
            changed[name] = _absolute(value, here, base, overridden)
    return section.model_copy(update=changed)


def _absolute(value: Any, path: KeyPath, base: Path, overridden: Mapping[KeyPath, Path]) -> Any:
    """A path from the file's directory, or from the base of the last override that gave it; other values as they are."""
    if not isinstance(value, Path):
        return value
    given = [of_override for key, of_override in overridden.items() if path[: len(key)] == key]
    return ((given[-1] if given else base) / value.expanduser()).absolute()
