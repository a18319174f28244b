"""What is being profiled, and where: the names in a coefficient file."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lemix_hpc
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.build import Device
from lemix_hpc.engines.memory_plan import BYTES
from lemix_hpc.engines.model_sizes import describe, model_config
from lemix_hpc.profiling.coefficients import load_coefficients

TIMEOUT_S = 30
LIBRARIES = ("torch", "transformers", "deepspeed", "mpi4py", "numpy")
BUILT_UNDER_OTHER_NAMES = "vllm"
"""Its builds for processors have names of their own."""


@dataclass(frozen=True, slots=True)
class Subject:
    """`longest` is the model's number of positions, None where there is no such limit; `hidden_bytes` what goes from stage to
    stage for each token, None where nothing does."""

    model: str
    dtype: str
    layers: int
    vocabulary: int
    longest: int | None
    hidden_bytes: int | None = None
    engine: str = "torch"

    @property
    def file_name(self) -> str:
        """What files are named after, without the number of stages. Times of another engine are other times."""
        engine = "" if self.engine in ("torch", "emulated") else f"-{self.engine}"
        return f"{slug(self.model)}-{self.dtype}{engine}"


def subject_of(recipe: Recipe, *, on_gpu: bool) -> Subject:
    """What the recipe's engine computes."""
    if not recipe.engine.computes:
        assert recipe.engine.coefficients is not None, "checked before anything starts"
        file = load_coefficients(recipe.engine.coefficients)
        return Subject(file.model, file.dtype, file.layers, 2, file.valid.max_length)
    sizes = describe(recipe.model)
    automatic = "bfloat16" if on_gpu else "float32"
    longest = model_config(recipe.model).get("max_position_embeddings") or sizes.max_positions
    weights = sizes.layers * sizes.layer_parameters + sizes.head_parameters
    name = recipe.model.path.name if recipe.model.path else f"{sizes.family}-{_short(weights)}"
    dtype = automatic if recipe.engine.dtype == "auto" else recipe.engine.dtype
    return Subject(name, dtype, sizes.layers, sizes.vocab, longest, BYTES[dtype] * sizes.hidden, recipe.engine.kind)


def hardware_name(recipe: Recipe, device: Device) -> str:
    """The GPU's name, or the processor's; the engine's own where it computes nothing."""
    if not recipe.engine.computes:
        return recipe.engine.kind
    if device.gpu is not None:
        import torch

        return str(torch.cuda.get_device_name(device.name))
    names = re.findall(r"^model name\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    return str(names[0]) if names else platform.machine()


def provenance(command: Sequence[str], hosts: Sequence[str]) -> dict[str, Any]:
    """How the numbers came about, as plain data."""
    from mpi4py import MPI

    facts: dict[str, Any] = {
        "source": "measured by lemix profile",
        "command": " ".join(command),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hosts": sorted(set(hosts)),
        "lemix": lemix_hpc.__version__,
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "driver": _text(Path("/proc/driver/nvidia/version")).partition("\n")[0],
        "clocks": _clocks(),
        "mpi": MPI.Get_library_version().partition(",")[0].strip(),
        "libraries": _versions(),
    }
    return {key: value for key, value in facts.items() if value}


def _versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    for name in importlib.metadata.packages_distributions().get(BUILT_UNDER_OTHER_NAMES, [])[:1]:
        versions[BUILT_UNDER_OTHER_NAMES] = importlib.metadata.version(name)
    return versions


def _clocks() -> list[str]:
    """Of each NVIDIA GPU of this host, right after measuring: they may have been lowered by heat, or by somebody."""
    fields = "index,clocks.sm,clocks.max.sm,clocks.mem,power.limit,clocks_event_reasons.active"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [f"{fields}: {line}" for line in told.splitlines() if line]


def slug(name: str) -> str:
    """A name as part of a path."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")


def _short(count: int) -> str:
    for unit, size in (("b", 10**9), ("m", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def _git_revision() -> str:
    """The commit of this package's own checkout, empty for an installed one."""
    directory = Path(lemix_hpc.__file__).parent
    tracked = ["git", "-C", str(directory), "ls-files", "--error-unmatch", "__init__.py"]
    revision = ["git", "-C", str(directory), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        subprocess.run(tracked, capture_output=True, check=True)
        return subprocess.run(revision, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""
