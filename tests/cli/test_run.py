import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Command

DEADLINE_S = 60
ENDLESS = "serving.source={kind: constant, rate: 1, requests: 1000}"


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"waited {DEADLINE_S} s for {what}"
        time.sleep(0.05)


def processes_in(directory: Path) -> list[str]:
    commands = subprocess.run(["ps", "-eww", "-o", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in commands.splitlines() if f"local_rank {directory}" in line]


def test_semantic_mistakes_have_lines_too(inside: Command, recipe: Path) -> None:
    done = inside("run", recipe, "--cluster", "local", "--set", "policy.placement=separate", "--set", "nodes.count=1")
    assert done.returncode == 2
    assert done.stderr.startswith("--set policy.placement=separate: policy.placement: separate needs at least 2 nodes")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("nodes.stages=40", "recipe.yaml:3: engine.coefficients: 40 stages need at least 40 layers"),
        (
            "model.config={model_type: llama, num_hidden_layers: 1}",
            "recipe.yaml:2: nodes.stages: 2 stages need as many",
        ),
        (
            "model.config={model_type: bert}",
            "--set model.config={model_type: bert}: model: the model type 'bert' is not",
        ),
    ],
)
def test_sizes_are_checked_before_anything_starts(
    inside: Command, recipe: Path, tmp_path: Path, change: str, message: str
) -> None:
    done = inside("run", recipe.name, "--cluster", "local", "--set", change)
    assert done.returncode == 2
    assert any(line.startswith(message) for line in done.stderr.splitlines()), done.stderr
    assert not (tmp_path / "runs").exists()


def test_dry_run_shows_recipe_and_command_and_starts_nothing(inside: Command, recipe: Path, tmp_path: Path) -> None:
    done = inside("run", recipe, "--cluster", "local", "--dry-run", "--set", "nodes.count=3")
    assert done.returncode == 0
    assert "count: 3" in done.stdout
    assert "mpiexec -n 9 " in done.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.mpi
def test_run_shows_progress_and_prints_the_report(lemix: Command, recipe: Path, tmp_path: Path) -> None:
    done = lemix("run", recipe, "--cluster", "local", "--out", "one")
    assert done.returncode == 0, done.stderr
    assert "served 5/5" in done.stderr
    assert "5 finished of 5" in done.stdout
    again = lemix("report", "one")
    assert again.stdout == done.stdout
    assert json.loads(lemix("report", "one", "--json").stdout) == json.loads((tmp_path / "one/report.json").read_text())


@pytest.mark.mpi
def test_run_as_json_prints_nothing_else(lemix: Command, recipe: Path) -> None:
    done = lemix("run", recipe, "--cluster", "local", "--json")
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict)


@pytest.mark.mpi
def test_failure_is_explained_with_exit_code_1(lemix: Command, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    config = {
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "vocab_size": 257,
    }
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"num_attention_heads": 2}))
    without_weights = ["engine={kind: torch}", f"model.path={tmp_path}/model", "training=null"]
    changes = [part for change in without_weights for part in ("--set", change)]
    done = lemix("run", recipe, "--cluster", "local", *changes, "--out", "one")
    assert done.returncode == 1
    assert "The run ended as FAILED." in done.stderr
    assert re.search(r"rank [12] \(node 0, stage [01]\) failed: UserError: .*safetensors", done.stderr)
    assert f"log: {tmp_path}/one/logs/attempt-0/rank-" in done.stderr
    assert lemix("report", "one").returncode == 2


@pytest.mark.mpi
def test_submit_ps_logs_cancel(lemix: Command, recipe: Path) -> None:
    done = lemix("submit", recipe, "--cluster", "local", "--json", "--set", ENDLESS)
    assert done.returncode == 0, done.stderr
    started = json.loads(done.stdout)
    directory = Path(started["directory"])
    wait_for((directory / "progress.json").exists, "the run to start")
    [row] = json.loads(lemix("ps", "--json").stdout)
    assert row["id"] == started["id"]
    assert row["state"] == "RUNNING"
    assert started["id"] in lemix("ps").stdout
    logs = lemix("logs", started["id"]).stdout.splitlines()
    assert {line.split(":")[0] for line in logs} >= {"rank 0", "rank 1", "rank 2"}
    assert lemix("logs", started["id"], "--rank", "3").returncode == 2
    assert lemix("cancel", started["id"]).returncode == 0
    wait_for(lambda: not processes_in(directory), "the ranks to end")
    [row] = json.loads(lemix("ps", "--json").stdout)
    assert row["state"] == "CANCELLED"


@pytest.mark.mpi
def test_a_killed_rank_ends_the_run_and_the_launcher_is_quoted(recipe: Path, tmp_path: Path) -> None:
    lemix = str(Path(sys.executable).parent / "lemix")
    following = subprocess.Popen(
        [lemix, "run", str(recipe), "--cluster", "local", "--out", "one", "--set", ENDLESS],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for((tmp_path / "one" / "progress.json").exists, "the run to start")
    ranks = [line for line in processes_in(tmp_path / "one") if "prterun" not in line and "mpiexec" not in line]
    os.kill(int(ranks[-1].split()[0]), signal.SIGKILL)
    _, stderr = following.communicate(timeout=DEADLINE_S)
    assert following.returncode == 1
    assert "The run ended as FAILED." in stderr
    assert f"From {tmp_path}/one/logs/mpiexec.log:" in stderr
    assert "signal 9" in stderr
    wait_for(lambda: not processes_in(tmp_path / "one"), "the other ranks to end")


@pytest.mark.mpi
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupting_run_ends_every_rank(recipe: Path, tmp_path: Path, number: signal.Signals) -> None:
    lemix = str(Path(sys.executable).parent / "lemix")
    following = subprocess.Popen(
        # A test that was started in the background has INT ignored, and hands that down.
        [
            "env",
            "--default-signal=INT",
            lemix,
            "run",
            str(recipe),
            "--cluster",
            "local",
            "--out",
            "one",
            "--set",
            ENDLESS,
        ],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for((tmp_path / "one" / "progress.json").exists, "the run to start")
    following.send_signal(number)
    _, stderr = following.communicate(timeout=DEADLINE_S)
    assert following.returncode == 130
    assert "Interrupted; ending the run." in stderr
    assert processes_in(tmp_path / "one") == []
