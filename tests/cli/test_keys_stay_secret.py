"""A client's key is in the file of keys and nowhere else: not in what is printed, nor in what others may read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from lemix_hpc.launch import start
from lemix_hpc.launch.rundir import RunDir
from lemix_hpc.records.key_file import KEY_FILE, VARIABLE
from tests.cli.conftest import Command
from tests.inputs.files import LLAMA

KEY = "s3cret-0f-cl1ents"


def in_recipe(http: dict[str, Any], _: Path, __: pytest.MonkeyPatch) -> None:
    http["api_key"] = f" {KEY} "


def in_environment(_: dict[str, Any], __: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


def in_file(http: dict[str, Any], directory: Path, _: pytest.MonkeyPatch) -> None:
    file = directory / "keys.yaml"
    file.touch(mode=0o600)
    file.write_text(f"keys: [{{name: eve, key: {KEY}}}]\n")
    http["api_key_file"] = str(file)


def made(_: dict[str, Any], __: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_urlsafe", lambda _: KEY)


@pytest.mark.parametrize("give", [in_recipe, in_environment, in_file, made])
def test_a_key_is_where_it_was_put_and_nowhere_else(
    give: Callable[..., None], tmp_path: Path, inside: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    http: dict[str, Any] = {"port": 0}
    give(http, tmp_path, monkeypatch)
    recipe = {"engine": {"kind": "vllm", "device": "cpu"}, "model": {"config": LLAMA}, "serving": {"http": http}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(start, "slurm_answers", lambda: False)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(start, "_start_supervisor", lambda *_: (SimpleNamespace(pid=os.getpid()), 0))
    printed = [
        inside("run", "recipe.yaml", "--cluster", "local", "--dry-run"),
        inside("submit", "recipe.yaml", "--cluster", "slurm", "--dry-run"),
        inside("submit", "recipe.yaml", "--cluster", "local", "--out", "one", "--json"),
        *(inside(command, "one") for command in ("url", "logs", "report", "stop", "resume")),
        *(inside("ps", *options) for options in ([], ["--json"], ["--all"])),
    ]
    assert [done.returncode for done in printed[:3]] == [0, 0, 0], printed[:3]
    assert [json.loads(printed[-2].stdout)[0]["id"]] == ["one"]
    for done in printed:
        assert KEY not in done.stdout + done.stderr
    told = {file for file in tmp_path.rglob("*") if file.is_file() and KEY in file.read_text()}
    given = {in_recipe: "recipe.yaml", in_file: "keys.yaml"}.get(give)
    kept = [] if give is in_file else [f"one/{KEY_FILE}"]
    assert told == {tmp_path / name for name in [*([given] if given else []), *kept]}
    for name in kept:
        assert (tmp_path / name).stat().st_mode & 0o77 == 0 and tmp_path.joinpath("one").stat().st_mode & 0o77 == 0
    assert RunDir(tmp_path / "one").read_record().id == "one"


NUMBER = "86753091234"
WRONG = [f'["{KEY}"]', f'{{"{KEY}": 1}}', f'"{KEY}\\u0000"', f'"{KEY}\\ud800"', f'"{KEY}\\na"', NUMBER, f"0.{NUMBER}"]


@pytest.mark.parametrize("key", WRONG)
def test_a_key_that_is_wrong_is_not_shown(key: str, tmp_path: Path, inside: Command) -> None:
    (tmp_path / "recipe.yaml").write_text(
        f"engine: {{kind: vllm, device: cpu}}\nmodel: {{config: {json.dumps(LLAMA)}}}\nserving: {{http: {{api_key: {key}}}}}\n"
    )
    done = inside("run", "recipe.yaml", "--cluster", "local", "--dry-run")
    assert done.returncode == 2 and "recipe.yaml:3: serving.http.api_key: " in done.stderr
    assert KEY not in done.stdout + done.stderr and NUMBER not in done.stdout + done.stderr
