"""`lemix study`: variants of a recipe side by side, and the studies that are shipped."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.study import read_study
from lemix_hpc.launch.rundir import RunDir
from lemix_hpc.launch.states import FINAL, run_state
from lemix_hpc.studies.study import grid_of
from tests.cli.conftest import COEFFICIENTS, LEMIX, REPOSITORY, Command
from tests.slurm.conftest import until

STUDIES = sorted((REPOSITORY / "recipes" / "paper").glob("*.yaml"))
STUDY = """\
recipe: recipe.yaml
rates: [20, 40]
variants:
  in turn: {policy.placement: round-robin}
  two nodes: {nodes.count: 2}
"""


@pytest.fixture
def study(recipe: Path, tmp_path: Path) -> Path:
    """In a directory beside its recipe, and not in that of the command."""
    path = tmp_path / "there" / "study.yaml"
    path.parent.mkdir()
    recipe.rename(path.parent / "recipe.yaml")
    path.write_text(STUDY)
    return path


def test_variants_are_compared_and_drawn(inside: Command, study: Path, tmp_path: Path) -> None:
    done = inside("study", study, "--seeds", "0,1", "--jobs", "1", "--json", "s.json", "--html", "s.html", "--png", "s")
    assert done.returncode == 0, done.stderr
    assert "tasks/s / in turn" in done.stdout
    content = json.loads((tmp_path / "s.json").read_text())
    rows = [(row["policy"], row["rate"], row["runs"]) for row in content["rows"]]
    assert rows == [(name, rate, 2) for rate in (20.0, 40.0) for name in ("in turn", "two nodes")]
    assert content["rows"][0]["ratios"]["throughput"] == 1.0 and content["baseline"] == "in turn"
    assert "<h1>study</h1>" in (tmp_path / "s.html").read_text()
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["sweep-0-0.png"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "study.yaml: a study has `recipe` and `variants`, found"),
        (STUDY.replace("variants", "variant"), "study.yaml:3: variant: unknown key; did you mean 'variants'?"),
        (STUDY + "baseline: pack\n", "the baseline 'pack' is not among the variants: in turn, two nodes"),
        (STUDY + "seeds: [-1]\n", "study.yaml:6: seeds.0: "),
        (STUDY.replace("recipe.yaml", "nowhere.yaml"), "nowhere.yaml: there is no such recipe file"),
        (STUDY.replace("nodes.count: 2", "nodes.counts: 2"), "study.yaml: variant two nodes: --set nodes.counts=2: "),
        (STUDY.replace("20, 40", "20"), "--png: one load has no lines; give several --rates or --training-shares"),
    ],
)
def test_mistakes(inside: Command, study: Path, text: str, told: str) -> None:
    study.write_text(text)
    done = inside("study", study, "--png", "pictures")
    assert done.returncode == 2 and told in done.stderr, done.stderr


def test_a_study_that_is_not_there(inside: Command) -> None:
    done = inside("study", "none.yaml")
    assert (done.returncode, done.stderr) == (2, "none.yaml: there is no such study\n")


REAL = """\
recipe: recipe.yaml
on: emulated
seeds: [0]
variants:
  in turn: {policy.placement: round-robin}
  pack: {policy.placement: pack}
"""


@pytest.mark.mpi
def test_a_study_runs_on_emulated_ranks_and_goes_on_where_it_was(inside: Command, study: Path, tmp_path: Path) -> None:
    study.write_text(REAL)
    once = inside("study", study, "--cluster", "local", "--json", "s.json")
    assert once.returncode == 0, once.stderr
    assert [row["policy"] for row in json.loads((tmp_path / "s.json").read_text())["rows"]] == ["in turn", "pack"]
    runs = tmp_path / "runs" / "study-emulated"
    assert sorted(path.name for path in runs.iterdir()) == ["in-turn_seed-0", "pack_seed-0"]
    records = [(path / "run.json").read_text() for path in sorted(runs.iterdir())]
    again = inside("study", study, "--cluster", "local")
    assert again.stdout == once.stdout
    assert [(path / "run.json").read_text() for path in sorted(runs.iterdir())] == records, "nothing ran again"
    study.write_text(REAL.replace("placement: pack", "placement: random"))
    other = inside("study", study, "--cluster", "local")
    assert other.returncode == 2 and "pack_seed-0: is there, and not of this study" in other.stderr


@pytest.mark.mpi
def test_a_study_that_is_ended_stops_its_run(study: Path, tmp_path: Path) -> None:
    study.write_text(REAL + "settings: {serving.source.rate: 0.1, serving.source.requests: 50}\n")
    command = [LEMIX, "study", str(study), "--cluster", "local"]
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    place = RunDir(tmp_path / "runs" / "study-emulated" / "in-turn_seed-0")
    until("run", lambda: place.progress.exists() and json.loads(place.progress.read_text())["state"] == "running")
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=120) == 130
    until("end of the run", lambda: run_state(place, place.read_record()) in FINAL)
    assert [path.name for path in place.path.parent.iterdir()] == ["in-turn_seed-0"], "the second one was not started"


TORCH = """\
settings:
  engine: {kind: torch, device: cpu}
  serving.source: {kind: poisson, rate: 5, requests: 4}
  serving.max_prompt_tokens: 32
  training: {data: {path: DATA}, sequence_length: 32, micro_batches: 4}
  model.config: {model_type: gpt2, n_embd: 8, n_layer: 2, n_head: 2, vocab_size: 300, n_positions: 64}
"""


@pytest.mark.mpi
def test_a_study_runs_on_devices(inside: Command, study: Path, tmp_path: Path) -> None:
    """With the recipe's own engine, here torch on a CPU: stages that compute."""
    data = REPOSITORY / "recipes" / "data" / "sums.jsonl"
    study.write_text(REAL.replace("on: emulated", "on: devices") + TORCH.replace("DATA", str(data)))
    done = inside("study", study, "--cluster", "local", "--json", "s.json", "--html", "s.html")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert [(row["policy"], row["means"]["throughput"] > 0) for row in rows] == [("in turn", True), ("pack", True)]
    reports = [
        json.loads(inside("report", run, "--json").stdout) for run in (tmp_path / "runs" / "study-devices").iterdir()
    ]
    assert [(each["engine"], each["serving"]["finished"], each["training"]["finished"]) for each in reports] == [
        ("torch", 4, 4)
    ] * 2
    assert all(5 < each["training"]["loss_last"] < 6 for each in reports), "ln 300 = 5.7: it has computed"


def test_a_study_on_devices_needs_an_engine_that_uses_them(inside: Command, study: Path) -> None:
    done = inside("study", study, "--on", "devices", "--cluster", "local")
    assert done.returncode == 2 and "variant in turn: on: devices: its engine is emulated" in done.stderr


def test_paths_of_a_study_are_relative_to_it(inside: Command, study: Path) -> None:
    (study.parent / "times.yaml").write_text(COEFFICIENTS.read_text())
    study.write_text(STUDY + "settings: {engine.coefficients: times.yaml}\n")
    done = inside("study", study, "--jobs", "1")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_papers_studies_run(inside: Command, tmp_path: Path, path: Path) -> None:
    shorter = ("--set", "serving.source.requests=12", "--rates", "20,40", "--seeds", "0", "--jobs", "1")
    shares = ("--training-shares", "0.5") if path.stem != "generation" else ()
    done = inside("study", path, *shorter, *shares, "--json", "s.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert all(row["means"]["throughput"] > 0 for row in rows) and len(rows) == 2 * len({row["policy"] for row in rows})
    assert f"lemix study recipes/paper/{path.name} --html {path.stem}.html --png {path.stem}" in path.read_text()


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_papers_studies_can_run_on_devices(path: Path) -> None:
    """All variants with a model, on stages that compute, after the checks that a run makes."""
    grid = grid_of(read_study(path).as_run("devices"), path, cluster="local")
    recipes = [grid.recipe_of(cell) for cell in grid.cells()]
    assert recipes and all(recipe.engine.computes and recipe.model for recipe in recipes)
    assert max(recipe.nodes.count * recipe.nodes.stages for recipe in recipes) <= 4
    assert max(cell.rate for cell in grid.cells() if cell.rate is not None) < 10, "devices are no A100s"


def test_a_study_says_what_is_another_on_devices(study: Path, tmp_path: Path) -> None:
    study.write_text(STUDY + "on_devices: {recipe: ../other.yaml, rates: [1], variants: {one: {}}}\n")
    content = read_study(study)
    assert (content.as_run(None), content.as_run("emulated").rates) == (content, [20.0, 40.0])
    there = content.as_run("devices")
    assert (there.on, there.rates, list(there.variants)) == ("devices", [1.0], ["one"])
    assert there.recipe.resolve() == tmp_path / "other.yaml"
    study.write_text(STUDY + "baseline: two nodes\non_devices: {variants: {one: {}}}\n")
    with pytest.raises(UserError, match="the baseline 'two nodes' is not among the variants: one"):
        read_study(study)
