"""A node that vLLM serves, on the real cluster: what signals and kills do to it, and what stays on the host."""

import os
import signal
from pathlib import Path

import pytest
import yaml

from lemix_hpc.launch.punish import engines
from lemix_hpc.launch.rundir import RunDir
from tests.runtime.conftest import sums_training, tiny_llama
from tests.slurm.conftest import Submit, Submitted, sacct_state, until

# The fixture `submit` is of the `slurm_cluster`.
pytestmark = pytest.mark.slurm


@pytest.fixture
def serving(submit: Submit) -> Submitted:
    """A run of one node that generates, and trains beside it, for longer than the test lasts; it has answered."""
    sections = {
        "nodes": {"count": 1, "stages": 2},
        "model": {"config": tiny_llama(2, hidden_size=128, intermediate_size=224)},
        "engine": {"kind": "vllm"},
        "serving": {
            "source": {"kind": "constant", "rate": 5, "requests": 5000, "lengths": "lmsys-chat"},
            "mode": "generate",
            "max_prompt_tokens": 32,
            "max_new_tokens": 8,
        },
        "training": sums_training(),
    }
    run = submit(*(f"{key}={yaml.safe_dump(section, default_flow_style=True)}" for key, section in sections.items()))
    run.serving()
    return run


def engine_of(run: Submitted) -> Path:
    """vLLM's engine process, as long as it lives."""
    (pid,) = engines(RunDir(run.path))
    return Path(f"/proc/{pid}")


def left_in_tmp(run: Submitted, host: str) -> str:
    """Directories of ours, and sockets."""
    return run.cluster.run(
        "srun", "-w", host, *["find", "/tmp", "-maxdepth", "1", "(", "-name", "*lemix-*", "-o", "-type", "s", ")"]
    )


def test_vllm_drains_when_slurm_passes_on_a_signal(serving: Submitted) -> None:
    run, host, engine = serving, serving.host, engine_of(serving)
    run.cluster.run("scancel", "--signal=TERM", run.job)
    run.ended("drained")
    run.gone()
    run.nothing_shared()
    assert not engine.exists()
    assert left_in_tmp(run, host) == ""
    for log in run.path.glob("logs/attempt-*/*.log"):
        assert "encountered an issue" not in log.read_text(), log
    assert sacct_state(run.cluster, run.job) == run.state == "COMPLETED"
    report = run.report
    assert report["serving"]["finished"] > 0 and report["training"]["finished"] > 0
    assert report["serving"]["lost"] == report["serving"]["rejected"] == 0
    assert report["checkpoints"]["saved"] == 1


@pytest.mark.slow
def test_nothing_of_vllm_stays_when_it_or_its_job_is_killed(serving: Submitted) -> None:
    run, host = serving, serving.host
    first = engine_of(run)
    os.kill(int(first.name), signal.SIGKILL)
    # Its leader says so, or Slurm's word on the ranks that it ended then comes first.
    assert run.end(0)["reason"] in ("error", "killed")
    run.serving(1)
    second = engine_of(run)
    run.cluster.run("scancel", run.job)
    run.gone()
    until("end of the engines", lambda: not first.exists() and not second.exists())
    run.nothing_shared()
    assert left_in_tmp(run, host) == ""
