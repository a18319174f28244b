"""Whether compute hosts can see the files of a run, as far as the host tells that a run is submitted from."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lemix_hpc.config.check import files_of
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.launch.registry import registry_dir
from lemix_hpc.launch.slurm_job import ask

_TYPES = "tmpfs ramfs devtmpfs overlay squashfs ext2 ext3 ext4 xfs btrfs zfs f2fs jfs reiserfs"
OF_ONE_HOST = frozenset(_TYPES.split())
"""Types of file systems that one host has by itself; its server may export it, which its type does not tell."""
MOUNTS = Path("/proc/self/mountinfo")


@dataclass(frozen=True)
class Mount:
    """A file system: where it is mounted, and its type."""

    point: Path
    kind: str


def unseen(recipe: Recipe, run_dir: Path) -> str | None:
    """A warning of the files of a run that compute hosts may not see; None if there are none, or there are no other hosts."""
    mounts = mounted()
    places = [("the run directory", run_dir), ("Python with this package", Path(sys.prefix)), *_files(recipe)]
    found = [(what, path, mount) for what, path in places if (mount := mount_of(path, mounts)) is not None]
    known = proven()
    local = [one for one in found if one[2].kind in OF_ONE_HOST and one[2].point not in known]
    if not local or _one_host():
        return None
    what, path, mount = local[0]
    more = f", and {len(local) - 1} more of the run's files are on such ones" if len(local) > 1 else ""
    way_out = (
        "set LEMIX_RUNS, or give --out, to a directory that all hosts share"
        if path == run_dir
        else "move it to a directory that all hosts share"
    )
    return (
        f"warning: {what}, {path}, is on {mount.kind} at {mount.point}, which by its type only this host has{more}. Where "
        f"compute hosts do not see it, {way_out}; where they do, `lemix doctor` proves it by a job, and this is not told again."
    )


def prove(path: Path) -> None:
    """Jobs have seen this path. A list that cannot be written only makes the warning come again."""
    mount = mount_of(path, mounted())
    if mount is None or mount.point in proven():
        return
    try:
        _list().parent.mkdir(parents=True, exist_ok=True)
        with _list().open("a", encoding="utf-8") as file:
            file.write(f"{mount.point}\n")
    except OSError as error:
        print(f"{_list()}: {error.strerror}", file=sys.stderr)


def proven() -> frozenset[Path]:
    """Where what is mounted has been seen by jobs."""
    try:
        return frozenset(map(Path, _list().read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError):
        return frozenset()


def mounted(table: Path = MOUNTS) -> list[Mount]:
    """What is mounted on this host; nothing where that cannot be read."""
    try:
        lines = table.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    # ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAGS] - TYPE SOURCE OPTIONS, see proc(5)
    halves = [line.partition(" - ") for line in lines]
    return [Mount(Path(_unescaped(left.split(" ")[4])), right.split(" ")[0]) for left, _, right in halves if right]


def mount_of(path: Path, mounts: list[Mount]) -> Mount | None:
    """The file system that a path is on, or would be: the last one of those with the longest name above it."""
    try:
        whole = path.resolve()
    except (OSError, RuntimeError):
        return None
    above = [mount for mount in mounts if whole.is_relative_to(mount.point)]
    return max(reversed(above), key=lambda mount: len(mount.point.parts), default=None)


def _files(recipe: Recipe) -> Iterator[tuple[str, Path]]:
    for key, path in files_of(recipe):
        yield ".".join(map(str, key)), path
    if recipe.model.path is not None:
        yield "model.path", recipe.model.path


def _one_host() -> bool:
    """Whether Slurm has no other host than this one, as far as it says."""
    hosts = set(ask("sinfo", "--noheader", "--Node", "--format", "%n").split())
    return bool(hosts) and {host.partition(".")[0] for host in hosts} == {socket.gethostname().partition(".")[0]}


def _list() -> Path:
    return registry_dir().parent / "seen-by-jobs"


def _unescaped(point: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), point)
