"""The checkpoints of a run on disk: completed, listed, checked, and removed when there are newer ones."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lemix_hpc.checkpoints.manifest import MANIFEST, Manifest, SavedFile, encode, read_manifest
from lemix_hpc.checkpoints.tensor_file import checksum
from lemix_hpc.config.errors import UserError
from lemix_hpc.records.files import sync_directory

CHECKPOINTS = "checkpoints"
"""The directory of checkpoints in that of a run."""

_UNFINISHED = "saving-"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint, by its directory."""

    path: Path
    manifest: Manifest

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Raises UserError for a directory without a manifest that can be read."""
        return cls(path, read_manifest(path))


def step_directory(directory: Path, step: int) -> Path:
    """Where the checkpoint after so many steps is."""
    return directory / f"step-{step:08d}"


def complete_paths(directory: Path) -> list[Path]:
    """The complete checkpoints in a directory, oldest first. One that cannot be read is as old as its manifest's file."""
    found = (path for path in directory.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))
    return sorted((path for path in found if (path / MANIFEST).is_file()), key=_created)


def begin(directory: Path, name: str) -> Path:
    """An empty directory for files of a checkpoint that is not complete yet. Raises OSError."""
    path = directory / f"{_UNFINISHED}{name}"
    path.mkdir(parents=True)
    return path


def complete(unfinished: Path, manifest: Manifest) -> Checkpoint:
    """Make a checkpoint of a directory whose files are on disk. A former one after the same step gives way.

    It counts from the instant at which its manifest is renamed into place. Raises OSError.
    """
    path = step_directory(unfinished.parent, manifest.step)
    partial = f"{MANIFEST}.partial"
    with (unfinished / partial).open("wb") as file:
        file.write(encode(manifest))
        file.flush()
        os.fsync(file.fileno())
    sync_directory(unfinished)
    # All that needs room on the disk is done.
    if path.exists():
        remove(path)
    unfinished.rename(path)
    (path / partial).rename(path / MANIFEST)
    sync_directory(path)
    sync_directory(path.parent)
    return Checkpoint(path, manifest)


def remove(path: Path) -> None:
    """Remove a checkpoint; at no time does a part of it look complete. Raises OSError."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)


def prune(directory: Path, keep: int) -> list[Path]:
    """Remove all complete checkpoints but the newest `keep`, and return them. Raises OSError."""
    old = complete_paths(directory)[:-keep]
    for path in old:
        remove(path)
    return old


def remove_unfinished(directory: Path) -> None:
    """Remove what saves left that did not come to an end. Raises OSError."""
    for path in directory.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(path)
    for path in directory.glob("step-*"):
        if not (path / MANIFEST).exists():
            shutil.rmtree(path)


def damage(checkpoint: Checkpoint) -> Iterator[str]:
    """What is wrong with the files of a checkpoint, one message for each that is; reads them in full, several at a time."""
    files = [file for node in checkpoint.manifest.saved for file in node.files]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "verify") as pool:
        for wrong in pool.map(lambda file: _wrong(checkpoint.path / file.name, file), files):
            if wrong is not None:
                yield wrong


def _wrong(path: Path, file: SavedFile) -> str | None:
    """Of one file; None if it is as it was written."""
    try:
        found = checksum(path)
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    if found.nbytes != file.nbytes:
        return f"{path}: has {found.nbytes} bytes, and {file.nbytes} were written"
    if found.sha256 != file.sha256:
        return f"{path}: its checksum is not the one that was written: the file is damaged"
    return None


def newest_whole(directory: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint in a directory of which every byte is as it was written, None if there is none.

    And what is wrong with those that are newer, for people to read.
    """
    problems: list[str] = []
    for path in reversed(complete_paths(directory)):
        try:
            checkpoint = Checkpoint.read(path)
        except UserError as error:
            problems.append(str(error))
            continue
        found = list(damage(checkpoint))
        if not found:
            return checkpoint, problems
        problems += found
    return None, problems


def _created(path: Path) -> float:
    """Seconds since the epoch. The step would not do: a run that had to go back comes by the same steps again."""
    try:
        return read_manifest(path).created
    except UserError:
        return (path / MANIFEST).stat().st_mtime
