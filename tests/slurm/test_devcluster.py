"""The one-machine cluster is a real Slurm: accounting, MPI across nodes, crashes, preemption."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import SlurmCluster

pytestmark = pytest.mark.slurm

ALLREDUCE = """
import json, socket
from mpi4py import MPI
world = MPI.COMM_WORLD
total = world.allreduce(world.rank)
hosts = world.gather(socket.gethostname())
if world.rank == 0:
    print(json.dumps({"size": world.size, "total": total, "hosts": hosts}))
"""


def wait_for(what: str, check: Callable[[], object], timeout_s: float = 60) -> None:
    """Poll until ``check`` holds; Slurm's state changes and its accounting arrive in their own time."""
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, f"{what}: not after {timeout_s} s"
        time.sleep(0.2)


def node_states(cluster: SlurmCluster) -> dict[str, str]:
    lines = cluster.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").splitlines()
    return dict(line.split() for line in lines)


def all_idle(cluster: SlurmCluster) -> bool:
    return node_states(cluster) == dict.fromkeys(("n1", "n2", "n3"), "idle")


def submit(cluster: SlurmCluster, directory: Path, *options: str, script: str) -> str:
    path = directory / "job.sh"
    path.write_text(f"#!/bin/sh\n{script}\n")
    return cluster.run("sbatch", "--parsable", f"--output={directory}/%j.out", *options, str(path))


def accounted_states(cluster: SlurmCluster, job_id: str) -> list[str]:
    return cluster.run("sacct", "-n", "-X", "-P", "-D", "-j", job_id, "-o", "State").splitlines()


def cluster_name(cluster: SlurmCluster) -> str:
    config = cluster.run("scontrol", "show", "config").splitlines()
    return next(line.split("=")[1].strip() for line in config if line.startswith("ClusterName"))


@pytest.fixture(scope="module")
def second_cluster(slurm_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    cluster = type(slurm_cluster)(tmp_path_factory.mktemp("second") / "state")
    started = cluster.devcluster("up")
    assert started.returncode == 0, started.stderr
    yield cluster
    stopped = cluster.devcluster("down")
    assert stopped.returncode == 0, stopped.stderr


def controller_pid(cluster: SlurmCluster) -> str:
    return cluster.run("cat", str(cluster.state / "run" / "slurmctld.pid"))


def test_three_nodes_are_idle_in_all_partitions(slurm_cluster: SlurmCluster) -> None:
    wait_for("idle nodes", lambda: all_idle(slurm_cluster))
    tiers = slurm_cluster.run("sinfo", "-h", "-o", "%R %D %p").splitlines()
    assert sorted(tiers) == ["main 3 1", "patient 3 1", "urgent 3 10"]


def test_sacct_shows_a_completed_job(slurm_cluster: SlurmCluster, slurm_tmp_path: Path) -> None:
    job_id = submit(slurm_cluster, slurm_tmp_path, "--wait", script="hostname")
    assert (slurm_tmp_path / f"{job_id}.out").read_text() in ("n1\n", "n2\n", "n3\n")
    wait_for("record of the job", lambda: accounted_states(slurm_cluster, job_id) == ["COMPLETED"])


def test_mpi_spans_two_nodes(slurm_cluster: SlurmCluster, slurm_tmp_path: Path) -> None:
    program = slurm_tmp_path / "allreduce.py"
    program.write_text(ALLREDUCE)
    layout = ("-N2", "--ntasks-per-node=3", "--kill-on-bad-exit=1")
    out = slurm_cluster.run("srun", "--mpi=pmix", *layout, sys.executable, "-m", "mpi4py", str(program))
    result = json.loads(out)
    assert result["size"] == 6
    assert result["total"] == 15
    first, second = sorted(set(result["hosts"]))
    assert [result["hosts"].count(host) for host in (first, second)] == [3, 3]


def test_nodes_have_private_tmp_and_resolve_each_other(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    if not tmp_path.is_relative_to("/tmp"):
        pytest.skip(f"pytest's temporary directory {tmp_path} is not below /tmp")
    assert (
        slurm_cluster.run("srun", "-w", "n1", "sh", "-c", f"test -e {tmp_path} && echo seen || echo private")
        == "private"
    )
    lookup = slurm_cluster.run("srun", "-w", "n1", "getent", "hosts", "n2")
    assert lookup.split()[1] == "n2"


def test_crashed_and_cut_off_nodes_go_down_and_come_back(slurm_cluster: SlurmCluster) -> None:
    slurm_cluster.crash("n2")
    slurm_cluster.cut("n3")
    wait_for("n2 and n3 down", lambda: [node_states(slurm_cluster)[n] for n in ("n2", "n3")] == ["down*", "down*"])
    assert slurm_cluster.run("srun", "-N1", "hostname") == "n1"
    slurm_cluster.revive("n2")
    slurm_cluster.join("n3")
    wait_for("idle nodes", lambda: all_idle(slurm_cluster))
    assert slurm_cluster.run("srun", "-w", "n2", "hostname") == "n2"


def test_jobs_outlive_killed_daemons_that_come_back(slurm_cluster: SlurmCluster, slurm_tmp_path: Path) -> None:
    held = f"touch {slurm_tmp_path}/ready; while [ ! -e {slurm_tmp_path}/go ]; do sleep 0.1; done"
    job = submit(slurm_cluster, slurm_tmp_path, "-w", "n2", script=held)
    ready, saved = slurm_tmp_path / "ready", slurm_cluster.state / "controller" / "job_state"
    wait_for("job runs", ready.exists)
    wait_for("controller has saved that", lambda: saved.stat().st_mtime > ready.stat().st_mtime)
    for daemon in ("n2", "slurmctld"):
        slurm_cluster.kill(daemon)
    # A slurmd cannot be registered while nobody listens.
    for daemon in ("slurmctld", "n2"):
        slurm_cluster.restart(daemon)
    assert slurm_cluster.run("squeue", "-h", "-j", job, "-o", "%T") == "RUNNING"
    (slurm_tmp_path / "go").touch()
    wait_for("record of the job", lambda: accounted_states(slurm_cluster, job) == ["COMPLETED"])


def test_urgent_job_signals_and_requeues_a_job_in_main(slurm_cluster: SlurmCluster, slurm_tmp_path: Path) -> None:
    signalled = slurm_tmp_path / "signalled"
    # TERM follows the user's signal at once, may overtake it, and would end a child of the trap, such as a `touch`.
    traps = f"trap ': >{signalled}' USR2; trap ended=1 TERM"
    held = f'{traps}\nsleep 600 & touch {slurm_tmp_path}/ready\nuntil [ "$ended" -a -e {signalled} ]; do wait; done; exit 143'
    low = submit(slurm_cluster, slurm_tmp_path, "-N3", "--exclusive", "--signal=B:USR2@60", script=held)
    try:
        wait_for("low job runs", (slurm_tmp_path / "ready").exists)
        submit(slurm_cluster, slurm_tmp_path, "-p", "urgent", "-N3", "--exclusive", "--wait", script="true")
        assert signalled.exists()
        assert "Restarts=1" in slurm_cluster.run("scontrol", "--oneliner", "show", "job", low).split()
        wait_for("record of the preemption", lambda: "PREEMPTED" in accounted_states(slurm_cluster, low))
    finally:
        slurm_cluster.run("scancel", low)
    wait_for("idle nodes", lambda: all_idle(slurm_cluster))


def test_up_on_a_running_cluster_changes_nothing(slurm_cluster: SlurmCluster) -> None:
    before = controller_pid(slurm_cluster)
    again = slurm_cluster.devcluster("up")
    assert (again.returncode, controller_pid(slurm_cluster)) == (0, before)
    assert "already up" in again.stdout
    other = slurm_cluster.devcluster("up", "--gpus=2")
    assert other.returncode == 2
    assert "with 4 GPUs on each node instead of 2" in other.stderr
    assert controller_pid(slurm_cluster) == before


def test_second_cluster_runs_beside_the_first(slurm_cluster: SlurmCluster, second_cluster: SlurmCluster) -> None:
    assert cluster_name(slurm_cluster) != cluster_name(second_cluster)
    second_cluster.run("srun", "-N3", "touch", str(second_cluster.scratch / "seen-from-a-node"))
    assert (second_cluster.scratch / "seen-from-a-node").exists()
    assert slurm_cluster.run("srun", "-N1", "-w", "n1", "hostname") == "n1"


def test_nodes_count_the_gpus_that_were_asked_for(slurm_cluster: SlurmCluster, second_cluster: SlurmCluster) -> None:
    assert set(slurm_cluster.run("sinfo", "-h", "-o", "%G").splitlines()) == {"gpu:4"}
    assert set(second_cluster.run("sinfo", "-h", "-o", "%G").splitlines()) == {"(null)"}


def test_half_a_cluster_is_started_afresh(second_cluster: SlurmCluster) -> None:
    second_cluster.crash("n1")
    mended = second_cluster.devcluster("up")
    assert mended.returncode == 0, mended.stderr
    assert "n1 not running" in mended.stderr
    assert second_cluster.run("srun", "-w", "n1", "hostname") == "n1"


def test_down_leaves_nothing_and_may_be_repeated(second_cluster: SlurmCluster) -> None:
    name = cluster_name(second_cluster)
    interfaces = Path("/sys/class/net")
    assert [path for path in interfaces.iterdir() if path.name.startswith(name)]
    stopped = second_cluster.devcluster("down")
    assert stopped.returncode == 0, stopped.stderr
    assert not [path for path in (*interfaces.iterdir(), *Path("/run/netns").iterdir()) if path.name.startswith(name)]
    assert str(second_cluster.state) not in Path("/proc/self/mounts").read_text()
    status = second_cluster.devcluster("status")
    assert (status.returncode, "pid" in status.stdout) == (1, False)
    assert second_cluster.devcluster("down").returncode == 0


def test_failed_start_names_the_step_and_takes_everything_down(
    slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bin" / "slurmctld"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no such plugin; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(broken.parent), prepend=":")
    cluster = type(slurm_cluster)(tmp_path / "failing")
    failed = cluster.devcluster("up")
    assert failed.returncode == 1
    assert "slurmctld: slurmctld ended early" in failed.stderr
    assert f"{cluster.state}/log/slurmctld.log" in failed.stderr
    assert "no such plugin" in failed.stderr
    assert "pid" not in cluster.devcluster("status").stdout


def test_directory_of_someone_else_is_refused(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    refused = type(slurm_cluster)(tmp_path).devcluster("up")
    assert refused.returncode == 2
    assert "not empty" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
