"""Writes the reference pages from the code: the tables of docs/recipes.md from the models of a recipe, docs/cli.md from the
commands, and Slurm's reasons in docs/failures.md. `--check` writes nothing, and names the pages that are out of date."""

from __future__ import annotations

import argparse
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.main import get_command

from lemix_hpc.cli.main import app
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.config.validation_messages import sections_in
from lemix_hpc.launch.queue_reasons import REASONS

DOCS = Path(__file__).resolve().parents[1] / "docs"
TABLE = re.compile(r"(<!-- keys: *([a-z_]*) *-->\n)(?:\|.*\n)*")
REASONS_TABLE = re.compile(r"(<!-- reasons -->\n)(?:\|.*\n)*")
NAMES = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
    Path: "path",
    list: "list",
    dict: "section",
}
SIGNS = {Gt: ("gt", ">"), Ge: ("ge", ">="), Lt: ("lt", "<"), Le: ("le", "<=")}
NO_LIMIT = 1e5
"""Larger bounds only keep nonsense out."""


def keys(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a section and of those in it, in order; more than once what several kinds of a section have."""
    for name, field in model.model_fields.items():
        yield ".".join((*path, name)), field
        for section in sections_in(field.annotation):
            yield from keys(section, (*path, name))


def recipe_table(section: str) -> str:
    """The keys of a top-level section, without a name those that are in none."""
    rows: dict[str, str] = {}
    for key, field in keys(Recipe):
        top, _, rest = key.partition(".")
        # A section of its own has a table or is named in the text; its keys say more than it does.
        if (top if rest else "") == section and field.description is not None and key not in rows:
            rows[key] = f"| `{key}` | {_default(field)} | {_type(field)} | {field.description} |"
    return "\n".join(["| Key | Default | Type | Meaning |", "|---|---|---|---|", *rows.values()]) + "\n"


def recipes_page(page: str) -> str:
    """The page with its tables made anew."""
    return TABLE.sub(lambda found: found[1] + recipe_table(found[2]), page)


def failures_page(page: str) -> str:
    """The page with the table of Slurm's reasons made anew."""
    rows = [f"| `{reason}` | {told} |" for reason, told in REASONS.items()]
    table = "\n".join(["| Slurm says | meaning, and the way out |", "|---|---|", *rows]) + "\n"
    return REASONS_TABLE.sub(lambda found: found[1] + table, page)


def cli_page() -> str:
    """All commands with their arguments and options."""
    root = get_command(app)
    lines = [
        "# Commands",
        "",
        "*This page is made by `scripts/reference.py`; `lemix COMMAND --help` says the same. What exit codes mean is in"
        " [launching](launching.md#exit-codes).*",
        "",
        *_command(root, "lemix"),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _command(command: Any, name: str) -> Iterator[str]:
    context = typer.Context(command, info_name=name)
    if getattr(command, "commands", None) is None or name == "lemix":
        usage = " ".join([name, *command.collect_usage_pieces(context)])
        yield from (f"## {name}", "", *_paragraphs(command.help or ""), "", "```text", usage, "```", "")
        yield from _parameters(command, context)
    for child in getattr(command, "commands", {}).values():
        yield from _command(child, f"{name} {child.name}")


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip())]


def _parameters(command: Any, context: typer.Context) -> Iterator[str]:
    records = filter(None, (parameter.get_help_record(context) for parameter in command.params))
    rows = [f"| `{_cell(name)}` | {_cell(text)} |" for name, text in records]
    if rows:
        yield from ("| | |", "|---|---|", *rows, "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*required*"
    if field.default is None or field.default_factory is not None or sections_in(field.annotation):
        return ""
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def _type(field: FieldInfo) -> str:
    if sections_in(field.annotation):
        return "list" if list in {typing.get_origin(part) for part in _members(field.annotation)} else "section"
    kinds = dict.fromkeys(_kind(part, field.metadata) for part in _members(field.annotation))
    return " or ".join(kinds)


def _members(annotation: Any) -> list[Any]:
    """Of a union all but None, else the type itself."""
    if typing.get_origin(annotation) is typing.Annotated or not typing.get_args(annotation):
        return [annotation]
    if typing.get_origin(annotation) in (list, dict, typing.Literal):
        return [annotation]
    return [part for part in typing.get_args(annotation) if part is not type(None)]


def _kind(part: Any, metadata: list[Any]) -> str:
    """A type in words, with its bounds."""
    if typing.get_origin(part) is typing.Annotated:
        part, *own = typing.get_args(part)
        metadata = [*metadata, *(bound for one in own for bound in getattr(one, "metadata", [one]))]
    if typing.get_origin(part) is typing.Literal:
        return "choice" if len(typing.get_args(part)) > 1 else f"`{typing.get_args(part)[0]}`"
    part = typing.get_origin(part) or part
    bounds = [_bound(one) for one in metadata] if part in (int, float) else []
    return f"{NAMES[part]} {', '.join(filter(None, bounds))}".rstrip()


def _bound(constraint: Any) -> str:
    for kind, (name, sign) in SIGNS.items():
        if isinstance(constraint, kind):
            value = getattr(constraint, name)
            return "" if abs(value) >= NO_LIMIT else f"{sign} {value:g}"
    return ""


def pages() -> dict[Path, str]:
    """What the pages should be."""
    recipes, failures = DOCS / "recipes.md", DOCS / "failures.md"
    return {
        recipes: recipes_page(recipes.read_text(encoding="utf-8")),
        failures: failures_page(failures.read_text(encoding="utf-8")),
        DOCS / "cli.md": cli_page(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if not arguments.check:
        for path in stale:
            path.write_text(pages()[path], encoding="utf-8")
    elif stale:
        sys.exit(f"out of date: {', '.join(path.name for path in stale)}; run `python scripts/reference.py`")


if __name__ == "__main__":
    main()
