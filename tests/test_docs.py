"""The documentation does what it says: links and paths lead somewhere, and every command in it runs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.what_fits import table
from tests.conftest import REPOSITORY

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
COMMAND = re.compile(r"^    ((?:lemix|sbatch|python benchmarks/\S+)(?: .*)?)$", re.MULTILINE)
# What does the same whether there is a cluster or not.
ANYWHERE = re.compile(
    r"python benchmarks/|lemix (fit|coefficients|simulate|compare|study|capacity|replay|explain|plan) "
    r"|lemix run .*--cluster local"
)
# Of a run with the OpenAI API, see tests/runtime/http/test_vllm.py.
ELSEWHERE = ("lemix url RUN",)
# A run that a reader would watch for a while is cut short here.
SHORTER = {
    "recipes/quickstart.yaml": "--set serving.source.duration_s=2",
    "recipes/quickstart.sbatch": "--set serving.source.duration_s=2",
    "recipes/vllm-http.yaml": "--set serving.http.duration_s=2 --set serving.http.port=0",
    "benchmarks/runtime_overhead.py": "--seconds 2",
    "lemix profile": "--set profile.lengths=[8,16] --set profile.batches=[1] --set profile.contexts=[8]",
    "benchmarks/recalibration.py": "--tasks 20 --rate 20",
    "lemix compare recipes/policy-study.yaml": "--seeds 0 --rates 50 --set serving.source.requests=50",
    "benchmarks/generate_agreement.py": "--placements fill --rates 8 --paces none --seconds 3 --outputs 20 --stretch 1",
    "benchmarks/memory_agreement.py": "--modes offload --parts 0.9 --seeds 1 --seconds 3",
    "benchmarks/pass_gap.py": "--only unpaced --rate 10 --requests 10",
    "lemix compare recipes/emulated-a100.yaml": "--seeds 0 --rates 8 --set serving.source.requests=20",
    "lemix study": "--seeds 0 --rates 20,40 --set serving.source.requests=20",
    "lemix capacity recipes/policy-study.yaml": "--seeds 0 --tolerance 0.5 --set serving.source.requests=200",
    "benchmarks/policy_study.py": "--seeds 1 --rates 50 --requests 40 --hours 0.02",
    "benchmarks/decision_cost.py": "--nodes 4 --decisions 100",
    "benchmarks/generation_study.py": "--rates 8 --seeds 1 --seconds 3 --requests 20",
    "benchmarks/simulation_speed.py": "--nodes 4 --tasks 1000",
    "benchmarks/punished_run.py": "--kills 1 --nodes 1 --requests 60 --rate 20 --micro-batches 60",
    "benchmarks/checkpoint_cost.py": "--seconds 8 --every 2",
    "benchmarks/journal_cost.py": "--rate 200 --rounds 1 --seconds 0.5",
    "benchmarks/resume_time.py": "--requests 500 --layers 2",
    "benchmarks/html_report.py": "--spans 2000",
    "benchmarks/start_cost.py": "--repeats 1 --engine emulated",
    "benchmarks/simulator_fidelity.py": "--policies least-completion --rates 16 --seconds 2",
}

RECIPE = f"""\
name: other
nodes: {{stages: 2}}
engine: {{kind: emulated, coefficients: {REPOSITORY}/profiling/nvidia-a100-80gb/llama-2-7b-float16.yaml}}
serving:
  source: {{kind: poisson, rate: 50, requests: 5}}
training: {{share: 0.3}}
"""

# A run whose weights are of interest.
TRAINED = f"""\
name: trained
model:
  config: {{model_type: llama, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, vocab_size: 257}}
engine: {{kind: torch, device: cpu}}
training: {{data: {{path: {REPOSITORY}/recipes/data/sums.jsonl}}, sequence_length: 32, micro_batches: 2}}
"""


def commands() -> list[str]:
    """Every command of the pages once, without the words that explain it."""
    found: dict[str, None] = {}
    for page in PAGES:
        for line in COMMAND.findall(page.read_text()):
            found[re.split(r" {2,}", line)[0].strip()] = None
    return [command for command in found if command not in ELSEWHERE]


def test_the_table_of_models_is_what_the_plan_says() -> None:
    assert table() in (REPOSITORY / "docs" / "memory.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert broken == []


def anchors(page: Path) -> set[str]:
    """What links can name of a page: its headings as GitHub writes them in addresses."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_headings_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text())
    broken = [
        f"{name}#{anchor}" for name, anchor in links if anchor not in anchors(page.parent / name if name else page)
    ]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_of_the_repository_exist(page: Path) -> None:
    named = re.findall(r"`((?:lemix_hpc|tests|benchmarks|recipes|profiling|docs|slurm)/[\w./-]+)`", page.read_text())
    assert [path for path in named if not (REPOSITORY / path).exists()] == []


class Reader:
    """Someone who types what the pages say, in a directory with a recipe and a finished run named `first`.

    `environment`: what the cluster that they work on needs, if they have one.
    """

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self.home = home
        programs = Path(sys.executable).parent
        self.environment = {
            **os.environ,
            **environment,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "LEMIX_RUNS": str(home / "runs"),
            "XDG_STATE_HOME": str(home / "state"),
            "OMP_NUM_THREADS": "1",
        }
        for name in ("recipes", "benchmarks"):
            (home / name).symlink_to(REPOSITORY / name)
        shutil.copytree(REPOSITORY / "profiling", home / "profiling")  # a reader's `lemix profile` writes here
        for name in ("recipe.yaml", "first.yaml"):
            (home / name).write_text(RECIPE)
        lines = [f"{b},{n},{0.2 + 0.002 * b * n + 1e-7 * b * n * n}" for b in (1, 2, 4) for n in (16, 64, 256, 1024)]
        (home / "points.csv").write_text("\n".join(["batch,length,ms", *lines]) + "\n")
        self.type("lemix run recipe.yaml --cluster local --out runs/first")

    def type(self, command: str) -> str:
        done = subprocess.run(
            shlex.split(command),
            cwd=self.home,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"{command}\nended with {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def train(self, run: str) -> None:
        """Make a run that leaves weights, unless there is one."""
        if not (self.home / "runs" / run).exists():
            (self.home / "trained.yaml").write_text(TRAINED)
            self.type(f"lemix run trained.yaml --cluster local --out runs/{run}")

    def await_end(self, run: str) -> None:
        while f"{run}  RUNNING" in re.sub(r" {2,}", "  ", self.type("lemix ps")):
            time.sleep(0.2)

    def await_job(self, submitted: str) -> None:
        """Wait for a batch job by what `sbatch` said; its own `--wait` looks only every half minute."""
        job = submitted.rsplit(maxsplit=1)[-1]
        while (state := self.state_of(job)) in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"):
            time.sleep(0.2)
        assert state == "COMPLETED", f"job {job} ended as {state}"

    def state_of(self, job: str) -> str:
        found = re.search(r"JobState=(\S+)", self.type(f"scontrol show job {job}"))
        assert found is not None, "Slurm remembers ended jobs for some minutes"
        return found[1]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """On a machine of their own."""
    return Reader(tmp_path_factory.mktemp("reader"), {})


def type_in_full(reader: Reader, command: str) -> None:
    run = "first"
    if command.startswith("lemix checkpoint"):
        run = "trained"
        reader.train(run)
    if command.startswith(("lemix cancel", "lemix stop", "lemix resume")):
        run = f"endless{len(list((reader.home / 'runs').iterdir()))}"
        endless = "serving.source={kind: constant, rate: 1, requests: 1000}"
        reader.type(f"lemix submit recipe.yaml --cluster local --set '{endless}' --out runs/{run}")
        command = command.replace("first", run)
    if command.startswith("lemix resume"):
        reader.type(f"lemix stop {run}")
        reader.await_end(run)
    typed = command.replace("[RECIPE]", "RECIPE").replace("RECIPE", "recipe.yaml").replace("RUN", run)
    typed += "".join(f" {shorter}" for name, shorter in SHORTER.items() if name in command)
    said = reader.type(typed)
    if command.startswith("sbatch"):
        reader.await_job(said)
    if command.startswith("lemix resume"):
        reader.type(f"lemix stop {run}")


@pytest.mark.mpi
@pytest.mark.parametrize("command", [command for command in commands() if ANYWHERE.match(command)])
def test_commands_run(reader: Reader, command: str) -> None:
    type_in_full(reader, command)
