"""Fixtures shared by all tests: the one-machine Slurm cluster and the published traces."""

import dataclasses
import getpass
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

REPOSITORY = Path(__file__).resolve().parents[1]
DEVCLUSTER = REPOSITORY / "slurm" / "devcluster" / "devcluster"
# Exit code of devcluster when the machine lacks root, apt, packages or namespaces.
MACHINE_UNFIT = 3

# What needs packages that a machine for `pytest -m cuda` may lack.
_NEEDS = {"engines/vllm": ("vllm", "starlette"), "runtime/http": ("starlette", "httpx", "openai")}
collect_ignore = [folder for folder, names in _NEEDS.items() if not all(map(find_spec, names))]


def pytest_report_header() -> list[str]:
    return [f"left out, since its packages are not installed: tests/{folder}" for folder in collect_ignore]


# How long an example takes depends on what else this machine does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def _trial_data_directory() -> Path:
    return Path(os.environ.get("LEMIX_TRIAL_DATA", REPOSITORY.parent / "shared" / "data")).resolve()


@dataclasses.dataclass(frozen=True)
class SlurmCluster:
    """A running cluster of slurm/devcluster, by its state directory."""

    state: Path

    def devcluster(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``devcluster`` on this cluster; the caller looks at the exit code."""
        command = [sys.executable, str(DEVCLUSTER), f"--state={self.state}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    @property
    def env(self) -> dict[str, str]:
        """What a client of the cluster needs on top of os.environ."""
        exports = self._must("env")
        pairs = (shlex.split(line)[1].split("=", 1) for line in exports.splitlines())
        return dict(pairs)

    @property
    def scratch(self) -> Path:
        """A directory that all nodes see; put run directories here, since a node's /tmp is its own."""
        return self.state / "scratch"

    def run(self, *command: str) -> str:
        """Output of a client command such as srun or sbatch, which must succeed."""
        environment = {**os.environ, **self.env}
        done = subprocess.run(
            command,
            env=environment,
            cwd=self.scratch,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{shlex.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def end_all_jobs(self, timeout_s: float = 240) -> None:
        """Cancel what runs or waits, until nothing of it is left: jobs may submit others while they end."""
        end = time.monotonic() + timeout_s
        while queue := self.run("squeue", "-h", "-o", "%i %T"):
            assert time.monotonic() < end, f"jobs are still there after {timeout_s} s:\n{queue}"
            self.run("scancel", "--quiet", f"--user={getpass.getuser()}")
            time.sleep(0.2)

    def crash(self, node: str) -> None:
        """Kill every process of the node at once; Slurm has to find out by itself."""
        self._must("crash", node)

    def revive(self, node: str) -> None:
        """Boot a crashed node and wait until Slurm has it in service."""
        self._must("revive", node)

    def cut(self, node: str) -> None:
        """Take the node off the network; its jobs run on."""
        self._must("cut", node)

    def join(self, node: str) -> None:
        """Put a cut-off node back and wait until Slurm has it in service."""
        self._must("join", node)

    def kill(self, daemon: str) -> None:
        """Kill -9 of ``slurmctld``, or of a node's slurmd by the node's name; jobs run on."""
        self._must("kill", daemon)

    def restart(self, daemon: str) -> None:
        """Start a killed daemon again and wait until it serves."""
        self._must("restart", daemon)

    def _must(self, *arguments: str) -> str:
        done = self.devcluster(*arguments)
        assert done.returncode == 0, f"devcluster {' '.join(arguments)} ended with {done.returncode}\n{done.stderr}"
        return done.stdout


class _OneForTheCluster(LoadFileScheduling):  # type: ignore[misc]
    """Like `--dist loadfile`, but all files with tests of the cluster go to one worker: they crash nodes, or see them idle."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "slurm" if "pytest.mark.slurm" in (REPOSITORY / file).read_text() else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    """xdist's own `loadgroup` does not see marks with this version of pytest."""
    return _OneForTheCluster(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """The cluster, started on first use and taken down at the end; one that is up already is used and left up.

    Where the machine cannot hold it the tests are skipped, or fail with LEMIX_REQUIRE_SLURM=1.
    """
    cluster = SlurmCluster(Path(os.environ.get("LEMIX_DEVCLUSTER", REPOSITORY / ".slurm-devcluster")).resolve())
    was_up = cluster.devcluster("status").returncode == 0
    # The interpreter that runs the ranks and the data must be visible in the nodes too, also when they lie below /tmp.
    shared = [Path(sys.prefix), Path(sys.base_prefix), _trial_data_directory()]
    started = cluster.devcluster(
        "up", "--gpus=4", *(f"--share={directory}" for directory in shared if directory.is_dir())
    )
    if started.returncode == MACHINE_UNFIT and os.environ.get("LEMIX_REQUIRE_SLURM") != "1":
        pytest.skip(f"no Slurm cluster on this machine: {started.stderr.strip()}")
    if started.returncode != 0:
        pytest.fail(f"the Slurm cluster did not start:\n{started.stderr}", pytrace=False)
    yield cluster
    if not was_up:
        stopped = cluster.devcluster("down")
        assert stopped.returncode == 0, stopped.stderr


@pytest.fixture
def slurm_tmp_path(slurm_cluster: SlurmCluster) -> Iterator[Path]:
    """Like tmp_path, but visible in every node of the cluster. A test's jobs end with it: they write there to their last."""
    directory = Path(tempfile.mkdtemp(dir=slurm_cluster.scratch))
    yield directory
    slurm_cluster.end_all_jobs()
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def trial_data() -> Path:
    """Directory of the published traces, which are not part of the project."""
    directory = _trial_data_directory()
    if not directory.is_dir():
        pytest.skip(f"no trial data in {directory}; set LEMIX_TRIAL_DATA to the directory that holds the traces")
    return directory
