"""What pydantic found wrong with a recipe, told in the recipe's own terms."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from lemix_hpc.config.document import KeyPath
from lemix_hpc.config.plain_values import visible
from lemix_hpc.config.problem import Problem
from lemix_hpc.config.vllm_args import NO_TENSOR_PARALLELISM

_EXPECTED = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "a section of keys and values",
    "path": "a path",
}


def explain(error: ErrorDetails, data: Any, model: type[BaseModel]) -> Problem:
    """One mistake that pydantic reported for `data`, as key path and sentence."""
    kind, given, context = error["type"], error["input"], error.get("ctx", {})
    path = _path_in(data, error["loc"], keep_last=kind == "missing")
    if kind.startswith("union_tag"):
        path = (*path, str(context["discriminator"]).strip("'"))
    match kind:
        case "extra_forbidden":
            text = _unknown_key(path, data, model)
        case "missing":
            text = "missing; this section needs it"
        case "union_tag_not_found":
            choices = _discriminator_values(section_at(path[:-1], data, model), str(path[-1]))
            text = f"missing; give one of {', '.join(map(repr, choices))}"
        case "union_tag_invalid":
            text = _choice(context["expected_tags"], context["tag"])
        case "literal_error":
            text = _choice(context["expected"], given)
        case "value_error":
            text = str(context["error"])
        case "model_type" | "model_attributes_type":
            keys = ", ".join(field_names(section_at(path, data, model)))
            text = f"expected a section with keys ({keys}), found {show(given)}"
        case _:
            text = f"{_expectation(error)}, found {visible(path, show(given))}"
    return Problem(path, text)


def _expectation(error: ErrorDetails) -> str:
    stem, _, reason = error["type"].partition("_")
    if reason in ("type", "parsing", "from_float") and stem in _EXPECTED:
        hint = "; write it in quotes" if stem == "string" and isinstance(error["input"], (int, float)) else ""
        return f"expected {_EXPECTED[stem]}{hint}"
    if error["type"] == "string_pattern_mismatch":
        return f"expected text that matches {error['ctx']['pattern']}"
    if error["type"] == "string_too_long":
        return f"expected at most {error['ctx']['max_length']} characters"
    return error["msg"].replace("Input should be", "expected", 1)


def _unknown_key(path: KeyPath, data: Any, model: type[BaseModel]) -> str:
    key, section = str(path[-1]), section_at(path[:-1], data, model)
    if key.startswith(("tensor_parallel", "tp_size")):
        return f"unknown key; {NO_TENSOR_PARALLELISM}"
    valid = field_names(section)
    near = difflib.get_close_matches(key, valid, n=1)
    suggestions = near or _elsewhere(key, model)
    hint = f"; did you mean {suggestions[0]!r}?" if suggestions else ""
    return f"unknown key{hint} (valid: {', '.join(valid)})"


def _elsewhere(key: str, model: type[BaseModel]) -> list[str]:
    """The key in another section of the recipe, for one that was only indented wrongly."""
    return [
        f"{name}.{key}"
        for name, field in model.model_fields.items()
        for section in sections_in(field.annotation)
        if key in section.model_fields
    ][:1]


def _choice(expected: str, found: Any) -> str:
    """`expected` is pydantic's list: quoted values with commas and `or` between them."""
    choices = expected.replace(" or ", ", ").split(", ")
    near = difflib.get_close_matches(str(found), [choice.strip("'") for choice in choices], n=1)
    one_of = "one of " if len(choices) > 2 else ""
    hint = f"; did you mean {near[0]!r}?" if near else ""
    listed = " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))
    return f"expected {one_of}{listed}, found {show(found)}{hint}"


def show(value: Any) -> str:
    """A value as a person would name it, cut to a line."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _path_in(data: Any, loc: Iterable[str | int], *, keep_last: bool) -> KeyPath:
    """Pydantic's location without what is no key: it names the chosen member of a union too."""
    steps, path = list(loc), []
    for place, step in enumerate(steps):
        inside = step in data if isinstance(data, dict) else isinstance(data, list) and isinstance(step, int)
        if inside:
            path.append(step)
            data = data[step]
        elif keep_last and place == len(steps) - 1:
            path.append(step)
    return tuple(path)


def field_names(models: list[type[BaseModel]]) -> list[str]:
    """The keys of a section, each once."""
    return list(dict.fromkeys(field.alias or name for model in models for name, field in model.model_fields.items()))


def section_at(path: KeyPath, data: Any, model: type[BaseModel]) -> list[type[BaseModel]]:
    """The models that the section at `path` may be; of a union the one its `kind` or `form` chooses, if it does."""
    models = [model]
    for step in path:
        if isinstance(step, int):  # an item of a list has the models of the list
            data = data[step] if isinstance(data, list) else None
            continue
        fields = [candidate.model_fields.get(step) for candidate in models]
        models = [found for field in fields if field for found in sections_in(field.annotation)]
        data = data.get(step) if isinstance(data, dict) else None
        for name in ("kind", "form"):
            choice = data.get(name) if isinstance(data, dict) else None
            models = [m for m in models if choice in _discriminator_values([m], name)] or models
    return models


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The models of sections in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in sections_in(part)]


def _discriminator_values(models: list[type[BaseModel]], name: str) -> list[str]:
    return [
        value
        for model in models
        if name in model.model_fields
        for value in typing.get_args(model.model_fields[name].annotation)
    ]
