"""What scripts go by: JSON from all commands that report, and exit codes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from lemix_hpc.cli.main import app
from tests.cli.conftest import COEFFICIENTS, REPOSITORY, Command

EMULATED = REPOSITORY / "recipes" / "emulated-a100.yaml"
# Those that do something, and print at most that they did; logs are text, and exports write files.
ACTING = {"init", "logs", "stop", "cancel", "set", "punish", "trace", "checkpoint export", "coefficients export"}


def commands(group: Any, name: str = "") -> Iterator[tuple[str, list[str]]]:
    for part, command in group.commands.items():
        full = f"{name} {part}".strip()
        if getattr(command, "commands", None):
            yield from commands(command, full)
        else:
            yield full, [option for parameter in command.params for option in parameter.opts]


def test_every_command_that_reports_has_json() -> None:
    assert {name for name, options in commands(get_command(app)) if "--json" not in options} == ACTING


def test_json_of_a_run(inside: Command, tmp_path: Path) -> None:
    inside("simulate", EMULATED, "--set", "serving.source.requests=20", "--out", tmp_path / "runs" / "simulated")
    [watched] = map(json.loads, inside("watch", "last", "--json").stdout.splitlines())
    assert (watched["id"], watched["state"], watched["alarms"]) == ("simulated", "COMPLETED", [])
    explained = json.loads(inside("explain", "last", "r0", "--nodes", 2, "--json").stdout)
    assert explained["task"]["id"] == "r0" and explained["node"] in [each["node"] for each in explained["forecasts"]]
    refused = inside("url", "last", "--json")
    assert (refused.returncode, refused.stdout) == (2, "")


def test_json_of_a_check(inside: Command) -> None:
    told = json.loads(inside("coefficients", "check", COEFFICIENTS, "--json").stdout)
    assert told["file"] == str(COEFFICIENTS) and told["check"].startswith("in order")


def test_exit_codes_are_those_of_the_documentation(inside: Command, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "launching.md").read_text()
    table = page.partition("## Exit codes")[2].partition("\n## ")[0]
    # 130 is that of an interrupted run: see test_run.
    assert re.findall(r"^\| (\d+) \|", table, re.MULTILINE) == ["0", "1", "2", "130"]
    llama = REPOSITORY / "recipes" / "llama-3.1-8b-4xgpu.yaml"
    assert inside("plan", llama, "--gpus", "4x80GB").returncode == 0
    assert inside("plan", llama, "--gpus", "4x16GB").returncode == 1
    assert inside("run", tmp_path / "none.yaml").returncode == 2
    assert inside("run", "--no-such-option").returncode == 2
