import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from tests.cli.conftest import LEMIX, Command
from tests.runtime.conftest import sums_training, tiny_llama

DEADLINE_S = 240
ENDLESS = "serving.source={kind: constant, rate: 1, requests: 1000}"


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"waited {DEADLINE_S} s for {what}"
        time.sleep(0.05)


def processes_in(directory: Path) -> list[str]:
    commands = subprocess.run(["ps", "-eww", "-o", "pid,args"], capture_output=True, text=True, check=True).stdout
    ranks = [line for line in commands.splitlines() if f"lemix_hpc.launch.rank {directory}" in line]
    return [line for line in ranks if "prterun" not in line and "mpiexec" not in line]


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
    assert "count: 3" in done.stdout and "restarts" not in done.stdout, "defaults are left out"
    assert "mpiexec -n 9 " in done.stdout
    assert not (tmp_path / "runs").exists()


ODD = "50% für 'mich'; $HOME #1 %s 名"
"""No name that a shell, a format or an old locale would leave alone."""


@pytest.mark.mpi
def test_run_shows_progress_and_prints_the_report_whatever_its_directory_is_called(
    lemix: Command, recipe: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "%d" / ODD
    odd.mkdir(parents=True)
    done = lemix("run", recipe.rename(odd / f"{ODD}.yaml"), "--cluster", "local", "--out", ODD)
    assert done.returncode == 0, done.stderr
    assert f"{ODD}: {tmp_path}/{ODD}\n" in done.stderr
    assert "served 5/5" in done.stderr
    assert "5 finished of 5" in done.stdout
    for name in (ODD, str(tmp_path / ODD)):
        assert lemix("report", name).stdout == done.stdout
    written = json.loads((tmp_path / ODD / "report.json").read_text())
    assert json.loads(lemix("report", ODD, "--json").stdout) == written
    [row] = json.loads(lemix("ps", "--json").stdout)
    assert (row["id"], row["state"], row["directory"]) == (ODD, "COMPLETED", str(tmp_path / ODD))
    assert ODD in lemix("ps", LC_ALL="C").stdout
    assert "rank 2: " in lemix("logs", ODD).stdout


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
    # What a layer is made of is looked at by its stage alone.
    save_file({f"model.layers.{layer}.other": np.zeros(1) for layer in range(2)}, tmp_path / "model/model.safetensors")
    without_weights = ["engine={kind: torch}", f"model.path={tmp_path}/model", "training=null"]
    changes = [part for change in without_weights for part in ("--set", change)]
    done = lemix("run", recipe, "--cluster", "local", *changes, "--out", "one")
    assert done.returncode == 1
    assert "The run ended as FAILED." in done.stderr
    assert re.search(r"rank [12] \(node 0, stage [01]\) failed: UserError: model.path: ", done.stderr)
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
    wait_for(lambda: json.loads(lemix("ps", "--json").stdout)[0]["state"] == "CANCELLED", "its end to be known")
    assert not processes_in(directory)


def running(directory: Path) -> bool:
    progress = directory / "progress.json"
    return progress.exists() and b'"running"' in progress.read_bytes()


def following(recipe: Path, tmp_path: Path, *changes: str) -> subprocess.Popen[str]:
    """`lemix run` of a run without an end."""
    sets = [part for change in (ENDLESS, *changes) for part in ("--set", change)]
    command = [LEMIX, "run", str(recipe), "--cluster", "local", "--out", "one", *sets]
    # A test that was started in the background, or by nohup, has these ignored, and hands that down.
    reset = ["env", "--default-signal=INT,HUP"]
    return subprocess.Popen([*reset, *command], cwd=tmp_path, stderr=subprocess.PIPE, text=True)


@pytest.mark.mpi
def test_a_killed_rank_is_followed_by_another_attempt_and_then_by_none(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "one"
    process = following(recipe, tmp_path, "cluster.restarts=1")
    wait_for(lambda: running(run) and json.loads((run / "progress.json").read_bytes())["served"], "an answer")
    places: set[Path] = set()
    for attempt in range(3):
        # Once more than is borne, since the first attempt had got somewhere.
        wait_for((run / "attempts" / str(attempt) / "start.json").exists, f"attempt {attempt}")
        rank = int(processes_in(run)[-1].split()[0])
        places |= kept_by(rank)
        # The second time the launcher, which then cleans up nothing.
        os.kill(parent(rank) if attempt == 1 else rank, signal.SIGKILL)
        wait_for((run / "attempts" / str(attempt) / "end.json").exists, "its end")
    _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert "The run ended as FAILED." in stderr
    assert re.search(r"Attempt 2: killed: rank \d on \S+ was killed by signal 9", stderr)
    assert "give up: 2 attempts in a row ended without progress" in (run / "logs/supervisor.log").read_text()
    wait_for(lambda: not processes_in(run), "the other ranks to end")
    assert len(places) == 6 and not any(place.exists() for place in places)


def kept_by(rank: int) -> set[Path]:
    """Where an attempt of this rank has its temporary files and its shared memory."""
    given = Path(f"/proc/{rank}/environ").read_bytes().split(b"\0")
    known = dict(os.fsdecode(line).partition("=")[::2] for line in given)
    return {Path(known["TMPDIR"]), Path(known["OMPI_MCA_btl_sm_backing_directory"])}


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.mpi
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupting_run_lets_it_finish_and_report(recipe: Path, tmp_path: Path, number: signal.Signals) -> None:
    process = following(recipe, tmp_path)
    wait_for(lambda: running(tmp_path / "one"), "the run to start")
    process.send_signal(number)
    _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert "one is stopping: it finishes what has begun, and then reports and ends. Ctrl-C again cancels it." in stderr
    assert "The run ended before all was done: asked to stop by `lemix stop`." in stderr
    assert processes_in(tmp_path / "one") == []
    assert json.loads((tmp_path / "one/attempts/0/end.json").read_text())["reason"] == "drained"
    report = json.loads((tmp_path / "one/report.json").read_text())
    assert report["serving"]["rejected"] == report["serving"]["lost"] == 0, (
        "what has not begun is left to another attempt"
    )


@pytest.mark.mpi
def test_interrupting_twice_ends_it_at_once(recipe: Path, tmp_path: Path) -> None:
    process = following(recipe, tmp_path)
    wait_for((tmp_path / "one/run.json").exists, "the run's record")
    process.send_signal(signal.SIGINT)
    wait_for((tmp_path / "one/stop").exists, "the first one to be heard")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert "Interrupted again; cancelling the run." in stderr
    wait_for(lambda: not processes_in(tmp_path / "one"), "the ranks to end")


@pytest.mark.mpi
def test_a_run_that_is_stopped_says_whether_its_training_has_helped(lemix: Command, tmp_path: Path) -> None:
    held_out = {"share": 0.2, "documents": 3}
    training = sums_training(held_out=held_out)
    (tmp_path / "torch.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {"config": tiny_llama(2)},
                "nodes": {"count": 1, "stages": 1},
                "serving": {"source": {"kind": "constant", "rate": 1, "requests": 1000}, "max_prompt_tokens": 32},
                "training": training,
            }
        )
    )
    done = lemix("submit", "torch.yaml", "--cluster", "local", "--out", "torch")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "torch"

    def has_trained() -> bool:
        return (run / "progress.json").exists() and json.loads((run / "progress.json").read_text())["steps"] > 3

    wait_for(has_trained, "some steps")
    assert lemix("stop", "torch").returncode == 0
    wait_for((run / "attempts/0/end.json").exists, "the run to end")
    before, after = json.loads((run / "held_out.json").read_text())
    assert before["steps"] == 0 and after["steps"] > 3
    assert after["loss"] < before["loss"]
    wait_for(lambda: not processes_in(run), "the ranks to end")


@pytest.mark.mpi
def test_stop_resume_and_what_ps_tells_of_both(lemix: Command, recipe: Path, tmp_path: Path) -> None:
    short = "serving.source={kind: constant, rate: 20, requests: 100}"
    lemix("submit", recipe, "--cluster", "local", "--out", "one", "--set", short)
    run = tmp_path / "one"
    wait_for(lambda: running(run), "the run to start")
    refused = lemix("resume", "one")
    assert (refused.returncode, refused.stderr.split(";")[0]) == (2, "one is RUNNING")
    assert lemix("url", "one").stderr == "one has no OpenAI API: its recipe has no serving.http\n"
    assert lemix("set", "one", "policy.max_hold_s=5", "policy.minimum_training_share=0.2").returncode == 0
    said = run / "logs/attempt-0/rank-0.log"
    wait_for(lambda: "policy.minimum_training_share is 0.2 from now on" in said.read_text(), "the changes")
    assert "one is stopping" in lemix("stop", "one").stdout
    watched = lemix("watch", "last")
    wait_for((run / "attempts/0/end.json").exists, "the run to end")
    lines = [line[len("00:00:00  ") :] for line in watched.stdout.splitlines()]
    assert watched.returncode == 0 and len(set(lines)) == len(lines), watched.stdout
    assert lines[-1] == "completed: drained: asked to stop by `lemix stop`"
    assert re.match(r"\d+ s: serving: served \d+/100; latency: p99 of .*; training: trained \d+", lines[-2]), lines
    wait_for(lambda: not processes_in(run), "the ranks to end")
    assert lemix("stop", "one").stderr.startswith("one has already ended: it is COMPLETED")
    done = lemix("resume", "one")
    assert done.returncode == 0, done.stderr
    wait_for((run / "attempts/1/end.json").exists, "the second attempt to end")
    wait_for(lambda: not processes_in(run), "the ranks to end")
    [row] = json.loads(lemix("ps", "--json").stdout)
    assert [attempt["ended"]["reason"] for attempt in row["attempts"]] == ["drained", "finished"]
    assert row["state"] == "COMPLETED"
    assert "drained, finished" in lemix("ps").stdout
    report = json.loads((run / "report.json").read_text())
    assert report["serving"]["finished"] == 100
    assert [(change["key"], change["value"]) for change in report["changes"]] == [
        ("policy.max_hold_s", "5.0"),
        ("policy.minimum_training_share", "0.2"),
    ]
    assert (
        lemix("set", "one", "policy.max_hold_s=5").stderr == "one has ended as COMPLETED: there is nothing to change\n"
    )
    assert "attempt 0, rank 1" in lemix("logs", "one", "--attempt", "0", "--rank", "1").stdout
    assert lemix("logs", "one", "--attempt", "2").stderr == "--attempt 2: the run has attempts 0 to 1\n"
    assert lemix("resume", "one").stderr.startswith("one has done all its work")
