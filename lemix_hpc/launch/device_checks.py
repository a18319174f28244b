"""What `lemix doctor` finds out about GPUs: on this host, and in a job that asks for them as the recipe does."""

from __future__ import annotations

import ast
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from lemix_hpc.config.cluster_section import Cluster
from lemix_hpc.launch.check import Check

Call = Callable[[list[str]], subprocess.CompletedProcess[str]]
OLDEST_DRIVERS = {12: 525, 13: 580}
"""By the major version of CUDA, which runs on the drivers of its own and later ones."""
_ASK = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]


def here(call: Call) -> Check:
    """The GPUs of this host, if it has a driver."""
    if shutil.which("nvidia-smi") is None:
        return Check("devices", "ok", "no NVIDIA driver on this host; runs use the CPU here")
    return _judged("devices", call(_ASK), torch_cuda())


def in_job(cluster: Cluster, flags: Sequence[str], call: Call) -> Iterator[Check]:
    """The GPUs that a job sees, where the recipe asks for some. `flags`: of srun, for where the job goes."""
    asked = {"gres": cluster.gres, "gpus-per-node": cluster.gpus_per_node, **cluster.sbatch}
    wanted = [f"--{name}={asked[name]}" for name in ("gres", "gpus-per-node", "gpus-per-task") if asked.get(name)]
    if not wanted:
        return
    name = "devices in a job"
    try:
        done = call(["srun", "--nodes=1", "--ntasks=1", "--time=1", "--immediate=30", *flags, *wanted, *_ASK])
    except subprocess.TimeoutExpired:
        yield Check(name, "warn", f"no job with {' '.join(wanted)} started, so they are not known; try again later")
        return
    yield _judged(name, done, torch_cuda())


def torch_cuda() -> str | None:
    """The version of CUDA that the torch at hand was built for, None for one without, read without loading it."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return None
    for node in ast.parse((Path(found.origin).parent / "version.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "cuda":
            return ast.literal_eval(node.value) if node.value is not None else None
    return None


def _judged(name: str, done: subprocess.CompletedProcess[str], cuda: str | None) -> Check:
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if "," in line]
    if done.returncode or not rows:
        said = next(
            (line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()), "it printed nothing"
        )
        return Check(name, "warn", f"nvidia-smi does not answer: {said}; ask the administrators")
    gpus, driver = ", ".join(row[0] for row in rows), rows[0][1]
    if cuda is None:
        return Check(
            name, "warn", f"{gpus}; the torch that is installed has no CUDA: runs use the CPU; install one that has"
        )
    oldest = OLDEST_DRIVERS.get(int(cuda.partition(".")[0]), 0)
    if int(driver.partition(".")[0]) < oldest:
        return Check(
            name,
            "fail",
            f"{gpus}; driver {driver} is too old for torch with CUDA {cuda}, which needs {oldest} or newer",
        )
    return Check(name, "ok", f"{gpus}; driver {driver}, torch with CUDA {cuda}")
