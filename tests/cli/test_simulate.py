"""Simulated runs from the command line: where they lie, and what other commands make of them."""

import csv
import json
from pathlib import Path

import pytest

from tests.cli.conftest import RECIPE, Command

MORE = ("--set", "serving.source.requests=1000", "--set", "serving.source.lengths=lmsys-chat")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("stages: 2", "count: 3, stages: 2").replace("requests: 5", "requests: 60"))
    return path


@pytest.fixture
def simulated(inside: Command, recipe: Path, tmp_path: Path) -> Path:
    assert inside("simulate", recipe, "--out", "one").returncode == 0
    return tmp_path / "one"


def test_a_simulated_run_lies_where_runs_lie(inside: Command, recipe: Path, simulated: Path, tmp_path: Path) -> None:
    again = inside("simulate", recipe, "--out", "two")
    assert "simulated engine" in again.stdout
    for name in ("report.json", "spans.jsonl", "tasks.jsonl", "events.jsonl", "facts.json", "recipe.yaml"):
        assert (simulated / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    [first, _] = json.loads(inside("ps", "--json").stdout)
    assert {key: first[key] for key in ("id", "state", "cluster", "served", "requests", "trained")} == {
        "id": "one",
        "state": "COMPLETED",
        "cluster": "simulated",
        "served": 60,
        "requests": 60,
        "trained": 26,
    }
    assert json.loads(inside("report", "one", "--json").stdout) == json.loads((simulated / "report.json").read_text())


@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize("command", ["logs", "cancel"])
def test_a_simulated_run_has_no_ranks(inside: Command, command: str) -> None:
    done = inside(command, "one")
    assert done.returncode == 2
    assert done.stderr.startswith("one was simulated, ")


def test_a_run_that_cannot_be_simulated_leaves_no_directory(inside: Command, recipe: Path, tmp_path: Path) -> None:
    done = inside("simulate", recipe, "--out", "bad", "--set", "serving.window.start_s=1000")
    assert done.returncode == 2
    assert "Widen serving.window" in done.stderr
    assert not (tmp_path / "bad").exists()


def test_the_split_that_is_best_is_told_and_kept(inside: Command, recipe: Path, tmp_path: Path) -> None:
    done = inside("simulate", recipe, "--set", "policy.placement=separate", "--split", "auto", "--out", "s")
    told = done.stdout.splitlines()[-1]
    assert told in ("Best split: 1 of 3 nodes train.", "Best split: 2 of 3 nodes train.")
    assert f"training_nodes: {told.split()[2]}\n" in (tmp_path / "s" / "recipe.yaml").read_text()


def test_compare_prints_writes_and_relates(inside: Command, recipe: Path, tmp_path: Path) -> None:
    done = inside(
        *("compare", recipe, "--policies", "pack,separate", "--rates", "20,40", "--training-shares", "0.3,0.5"),
        *("--seeds", "0,1", "--jobs", "1", "--csv", "c.csv", "--json", "c.json"),
        *("--html", "c.html", "--png", "pictures"),
    )
    assert done.returncode == 0, done.stderr
    assert "tasks/s / separate" in done.stdout
    # Over the rates, for each share.
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["sweep-0-0.png", "sweep-0-1.png"]
    assert "training share 0.5" in (tmp_path / "c.html").read_text()
    lines = list(csv.DictReader((tmp_path / "c.csv").open()))
    content = json.loads((tmp_path / "c.json").read_text())
    assert len(lines) == len(content["runs"]) == 16
    assert (len(content["rows"]), content["baseline"]) == (8, "separate")
    for row in content["rows"]:
        runs = [run for run in content["runs"] if all(run[k] == row[k] for k in ("policy", "rate", "training_share"))]
        assert row["means"]["p99_ms"] == pytest.approx(sum(run["p99_ms"] for run in runs) / 2)
        if row["policy"] == "separate":
            assert row["ratios"]["throughput"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policies", "packed"], "--policies: there is no policy packed; give some of least-completion, lemix, "),
        (["--policies", "pack,,lemix"], "--policies: expected values with commas between them"),
        (["--policies", "pack,pack"], "--policies: pack is there twice"),
        (["--rates", "4,0"], "--rates: expected a rate above 0, in requests per second; found 0"),
        (["--rates", "-1"], "--rates: expected a rate above 0, in requests per second; found -1"),
        (["--rates", "fast"], "--rates: expected a rate above 0, in requests per second; found fast"),
        (["--training-shares", "1"], "--training-shares: expected a share between 0 and 1, such as 0.5; found 1"),
        (["--seeds", "-1"], "--seeds: expected whole numbers from 0 on"),
        (["--split", "0"], "--split: expected a number of nodes above 0, or auto"),
        (["--split", "3"], "policy separate: at least one of 3 nodes must serve"),
        (
            ["--rates", "4", "--png", "pictures"],
            "--png: one load has no lines; give several --rates or --training-shares",
        ),
        (["--policies", "pack", "--baseline", "lemix"], "--baseline: lemix is not among the policies"),
        (["--policies", "lemix", "--set", "policy.tau=1"], "policy lemix: placement lemix uses `tau` with `keep`"),
        (["--set", "training=null", "--training-shares", "0.5"], "training: the recipe has no training"),
    ],
)
def test_grids_that_make_no_sense(inside: Command, recipe: Path, arguments: list[str], message: str) -> None:
    done = inside("compare", recipe, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(message)


def test_capacity_beside_its_bound(inside: Command, recipe: Path) -> None:
    done = inside("capacity", recipe, "--policies", "least-completion,separate", "--tolerance", "0.1", "--json", *MORE)
    assert done.returncode == 0, done.stderr
    together, separate = json.loads(done.stdout)
    assert together["rate"] > separate["rate"]
    assert min(together["attainment"], separate["attainment"]) >= 0.9
    assert together["bound"] == separate["bound"]
    assert inside("capacity", recipe, "--attainment", "90").stderr.startswith("--attainment: expected a number above 0")


def test_capacity_says_when_there_is_none(inside: Command, recipe: Path) -> None:
    done = inside("capacity", recipe, "--slo", "0.01")
    assert "even the lowest rate misses" in done.stdout


@pytest.mark.usefixtures("simulated")
def test_the_same_policy_replays_a_simulated_run_as_it_was(inside: Command) -> None:
    done = inside("replay", "one", "--policy", "same", "--json")
    both = json.loads(done.stdout)
    assert both["recorded"] == both["same"] == both["replayed"]
    other = json.loads(inside("replay", "one", "--policy", "pack", "--json").stdout)
    assert other["recorded"] == both["recorded"] == other["same"]
    assert other["replayed"]["active_nodes"] < other["recorded"]["active_nodes"]


@pytest.mark.usefixtures("simulated")
def test_a_replay_is_beside_the_run_and_the_same_in_simulated_time(inside: Command) -> None:
    named, told, _, head, _, first, *_ = inside("replay", "one", "--policy", "pack").stdout.splitlines()
    assert (named, told) == ("one", "least-completion, run and simulated; pack, simulated; its change")
    assert head.split() == ["run", "simulated", "pack", "change"]
    assert first.split()[0] == "tasks/s" and first.split()[-1].endswith("%")
    own = inside("replay", "one", "--policy", "same").stdout.splitlines()
    assert max(map(len, own)) <= 80 and own[3].split() == ["run", "simulated", "change"]


@pytest.mark.usefixtures("simulated")
def test_reports_have_what_training_cost_once_it_was_asked_for(inside: Command, tmp_path: Path) -> None:
    assert "training_cost" not in json.loads(inside("report", "one", "--json").stdout)
    assert "beside serve-only, both simulated" in " ".join(inside("report", "one", "--serve-only").stdout.split())
    cost = json.loads(inside("report", "one", "--json").stdout)["training_cost"]
    assert cost["simulated"] == cost["run"] and set(cost["serve_only"]) == set(cost["run"])
    assert inside("report", "one", "--html", "page.html").returncode == 0
    assert "Training cost serving: attainment " in (tmp_path / "page.html").read_text()


@pytest.mark.usefixtures("simulated")
def test_only_the_policy_of_a_recorded_run_can_be_changed(inside: Command) -> None:
    done = inside("replay", "one", "--policy", "pack", "--set", "seed=3")
    assert (done.returncode, done.stderr) == (
        2,
        "--set seed=3: the load is the recorded one; only keys of the policy can be changed\n",
    )


@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize("task", ["r0", "r59", "t0", "t25", "61"])
def test_decisions_are_explained(inside: Command, task: str) -> None:
    done = inside("explain", "one", task)
    assert done.returncode == 0, done.stderr
    assert "least-completion chose: node " in done.stdout
    node = done.stdout.split("chose: node ")[1].split()[0]
    [marked] = [line for line in done.stdout.splitlines() if line.startswith(" > ")]
    assert marked.split()[1] == node
    assert ("Actual response: " in done.stdout) == task.startswith("r")


def test_a_decision_that_the_events_do_not_lead_to(inside: Command, simulated: Path) -> None:
    tasks = simulated / "tasks.jsonl"
    first = json.loads(tasks.read_text().splitlines()[0])
    changed = tasks.read_text().replace(f'"node":{first["node"]}', f'"node":{(first["node"] + 1) % 3}', 1)
    tasks.write_text(changed)
    done = inside("explain", "one", "r0")
    assert done.returncode == 2
    assert f"leads to node {first['node']}, and tasks.jsonl has it on node " in done.stderr


def test_without_events_nothing_is_explained(inside: Command, simulated: Path) -> None:
    (simulated / "events.jsonl").unlink()
    done = inside("explain", "one", "t3")
    assert done.returncode == 2
    assert "events.jsonl is missing" in done.stderr
