"""A file system that is small enough to be filled up."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_IN_A_NAMESPACE = 'mount -t tmpfs -o size="$1" tmpfs "$2" && echo mounted && exec sleep infinity'


@dataclass(frozen=True)
class SmallDisk:
    """`path`: where it is for commands that begin with `prefix`; `view`: where the test sees it."""

    path: Path
    view: Path
    prefix: tuple[str, ...] = ()

    def fill(self) -> None:
        """Leave not a byte."""
        with (self.view / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        pass

    def free(self) -> None:
        (self.view / "filler").unlink()


@contextlib.contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[SmallDisk]:
    """Mounted on `directory`, in a namespace of its own where that is not allowed. Skips where neither is."""
    size = f"{megabytes}m"
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        try:
            yield SmallDisk(directory, directory)
        finally:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)
        return
    with in_a_namespace(directory, size) as disk:
        if disk is None:
            pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}, nor in a user namespace")
        yield disk


@contextlib.contextmanager
def in_a_namespace(directory: Path, size: str) -> Iterator[SmallDisk | None]:
    """None where there are none."""
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        _IN_A_NAMESPACE,
        "sh",
        size,
        str(directory),
    ]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert holder.stdout is not None, "a pipe"
        if holder.stdout.readline() != "mounted\n":
            yield None
            return
        enter = (
            "nsenter",
            f"--target={holder.pid}",
            "--user",
            "--mount",
            "--preserve-credentials",
            f"--wd={Path.cwd()}",
        )
        yield SmallDisk(directory, Path(f"/proc/{holder.pid}/root{directory}"), enter)
    finally:
        holder.kill()
        holder.wait()
