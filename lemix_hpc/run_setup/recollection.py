"""What a scheduler takes over from the one of the attempt before, and from which files."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import msgspec

from lemix_hpc.config.text_file import BROKEN_JSON
from lemix_hpc.policy.memory import Memory
from lemix_hpc.profiling.hardware import Hardware
from lemix_hpc.records.schema import MEMORY, RECALLED, SchedulerMemory


def digest(hardware: Hardware) -> str:
    """Of the stage times that forecasts start from, whatever else their files say."""
    files = [file.model_dump_json(include={"form", "layers", "per_layer", "stages"}) for file in hardware.believed]
    return hashlib.sha256("\n".join(files).encode()).hexdigest()


def left_by(attempt_dir: Path, hardware: Hardware) -> Memory | None:
    """What the scheduler of an attempt has learned, None if it left nothing that can be read. What it learned of other stage
    times than these is left out."""
    found = _read(attempt_dir / MEMORY)
    if found is None:
        return None
    same = found.coefficients == digest(hardware)
    return found.memory if same else replace(found.memory, lessons=(), overhead=0.0)


def started_with(attempt_dir: Path) -> Memory | None:
    """What the scheduler of an attempt took over, None for nothing."""
    found = _read(attempt_dir / RECALLED)
    return found.memory if found is not None else None


def _read(path: Path) -> SchedulerMemory | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=SchedulerMemory)
    except FileNotFoundError:
        return None
    except BROKEN_JSON as error:
        print(f"damaged: {path}: {error}; what it had learned is learned anew", flush=True)
        return None
