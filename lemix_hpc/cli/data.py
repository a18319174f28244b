"""`lemix data`: training data as the model sees them."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lemix_hpc.cli.run import Json, Overrides, RecipePath
from lemix_hpc.config.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from lemix_hpc.config.recipe import Recipe
    from lemix_hpc.config.training_section import Training
    from lemix_hpc.workload.preview import Row

_IDS = 8
"""Tokens of a stretch whose ids are shown."""
_CHARACTERS = 600
"""Characters of a stretch that are shown."""
_LEFT_OUT = 5
"""Lines that are told to be left out, one by one."""
_STYLES = {"learnt": "bold green", "context": "", "padding": "dim"}


def data(
    recipe: RecipePath,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, help="How many sequences to show.")] = 4,
    as_json: Json = False,
) -> None:
    """Show the first training sequences as the model sees them: tokens, text, and which part is learnt."""
    from lemix_hpc.config.load import load_recipe
    from lemix_hpc.workload.model_trial import check_template
    from lemix_hpc.workload.preview import rows_of
    from lemix_hpc.workload.tokenizer import load_tokenizer
    from lemix_hpc.workload.training import MicroBatchStream

    ready = load_recipe(recipe, overrides or ())
    training = _training_of(ready)
    check_template(ready.model)
    tokenizer = load_tokenizer(ready.model)
    batches = MicroBatchStream(training, tokenizer, ready.seed)
    shown = list(islice(rows_of(batches, tokenizer), rows))
    if as_json:
        typer.echo(json.dumps({"left_out": list(batches.malformed), "rows": [_as_json(row) for row in shown]}))
        return
    for message in batches.malformed[:_LEFT_OUT]:
        typer.echo(f"left out: {message}", err=True)
    if len(batches.malformed) > _LEFT_OUT:
        typer.echo(f"left out: {len(batches.malformed) - _LEFT_OUT} more lines; --json lists them", err=True)
    from rich.console import Console

    console = Console()
    for row in shown:
        console.print(_table(row))


def _training_of(recipe: Recipe) -> Training:
    training = recipe.training
    if training is None or training.data is None:
        raise UserError("the recipe has no training.data, so there is nothing to show; add it, or give another recipe")
    if not recipe.engine.computes:
        raise UserError(
            f"the {recipe.engine.kind} engine does not read training.data; add --set engine.kind=torch to see what torch would"
        )
    return training


def _as_json(row: Row) -> dict[str, Any]:
    parts = [{"part": each.kind, "tokens": list(each.tokens), "text": each.text} for each in row.stretches]
    return {"micro_batch": row.micro_batch, "row": row.row, "parts": parts}


def _table(row: Row) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    count = sum(len(each.tokens) for each in row.stretches)
    learnt = sum(len(each.tokens) for each in row.stretches if each.kind == "learnt")
    title = f"{row.micro_batch}, row {row.row}: {learnt} of {count} tokens are learnt"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
    table.add_column("part", no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("ids", max_width=30)
    table.add_column("text", overflow="fold")
    for each in row.stretches:
        ids = " ".join(map(str, each.tokens[:_IDS])) + (" ..." if len(each.tokens) > _IDS else "")
        text = "" if each.kind == "padding" else _in_one_line(each.text)
        style = _STYLES[each.kind]
        table.add_row(Text(each.kind, style), str(len(each.tokens)), Text(ids, "dim"), Text(text, style))
    return table


def _in_one_line(text: str) -> str:
    """With line ends and control characters in sight, without the middle of a long one."""
    written = text if len(text) <= _CHARACTERS else f"{text[: _CHARACTERS // 2]} ... {text[-_CHARACTERS // 2 :]}"
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in written)
