"""Libraries that this process has loaded, by their names."""

from __future__ import annotations

import ctypes
from pathlib import Path


def loaded_library(name: str) -> ctypes.CDLL | None:
    """The library whose file begins with `name`, such as `libmpi.so`; None if it is not loaded."""
    path = next((line.split()[-1] for line in memory_map() if f"/{name}" in line), None)
    return ctypes.CDLL(path) if path else None


def memory_map() -> list[str]:
    """What Linux has mapped into this process, a line each; nothing on other systems."""
    path = Path("/proc/self/maps")
    return path.read_text().splitlines() if path.exists() else []
