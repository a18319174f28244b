"""docs/inputs.md is right: each input is refused with its message and exit code, before anything starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.conftest import Command, inside, own_runs
from tests.inputs.cases import CASES
from tests.inputs.permissions import bound_by_modes
from tests.inputs.table import Row, rows

__all__ = ["inside", "own_runs"]

# With vLLM's parser, which takes long to import: tests/engines/vllm/test_check.py.
OWN_ARGUMENTS = "vLLM's own arguments"
ROWS = [row for row in rows() if row.section != OWN_ARGUMENTS]


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.section}-{row.name}" for row in ROWS])
def test_an_input_is_refused_as_the_table_says(row: Row, tmp_path: Path, inside: Command) -> None:
    arguments = row.make(tmp_path)
    with bound_by_modes():
        done = inside(*arguments)
    assert done.returncode == row.code, done.stdout[-500:]
    said = done.stderr + (done.stdout if row.code == 0 else "")
    printed = said.replace(f"{tmp_path}{os.sep}", "").replace(str(tmp_path), "")
    assert row.is_in(printed), printed
    assert not (tmp_path / "runs").exists(), "nothing was started"


OUTS = [row for row in ROWS if row.name.startswith("`--out")]


@pytest.mark.parametrize("row", OUTS, ids=[row.name for row in OUTS])
def test_a_dry_run_refuses_the_same_directories(row: Row, tmp_path: Path, inside: Command) -> None:
    arguments = [*row.make(tmp_path), "--dry-run"]
    before = sorted(tmp_path.rglob("*"))
    with bound_by_modes():
        done = inside(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    # Nobody may write to /proc, and of what would be asked first a look does not know.
    message = row.message if "/proc" not in row.name else "/proc/run: the run directory cannot be made: ..."
    printed = done.stderr.replace(f"{tmp_path}{os.sep}", "")
    assert Row(row.section, row.name, message, 2).is_in(printed), printed
    assert sorted(tmp_path.rglob("*")) == before


def test_every_case_is_in_the_table() -> None:
    assert {row.name for row in ROWS} >= CASES.keys()
    assert len(ROWS) > 150
