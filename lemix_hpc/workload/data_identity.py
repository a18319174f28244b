"""Which training data a run has, to tell later whether they are still the same and are cut into the same micro-batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

WHOLE = 64 << 20
"""Files of up to so many bytes are read as a whole; of larger ones samples are."""
_SAMPLES = 256
_SAMPLE = 16 << 10


class FileIdentity(msgspec.Struct, frozen=True):
    """A file by its content. `digest`: of all of it, or of samples."""

    path: str
    nbytes: int
    digest: str


class DataIdentity(msgspec.Struct, frozen=True):
    """The files, in order, and a digest of what cuts them into micro-batches."""

    files: list[FileIdentity]
    cut: str

    def equals(self, other: DataIdentity) -> bool:
        """Whether both make the same micro-batches, wherever the files are."""
        return self.cut == other.cut and _contents(self) == _contents(other)

    def differs_from(self, before: DataIdentity) -> str:
        """What has become different, in words."""
        old, new = ({file.path: file for file in each.files} for each in (before, self))
        for path in sorted(old.keys() | new.keys()):
            if path not in new:
                return f"{path} is not among them any more"
            if path not in old:
                return f"{path} is new"
            if old[path] != new[path]:
                return f"{path} has other content ({new[path].nbytes} bytes, and it had {old[path].nbytes})"
        return "they are cut into micro-batches in another way, or by another tokenizer"


def identity_of(paths: Sequence[Path], cut: Sequence[object]) -> DataIdentity:
    """`cut`: all that decides how they are cut, by its text. Raises OSError for a file that cannot be read."""
    how = hashlib.blake2b("\0".join(map(str, cut)).encode(), digest_size=16).hexdigest()
    return DataIdentity([_file(path) for path in paths], how)


def _file(path: Path) -> FileIdentity:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        return FileIdentity(str(path.absolute()), size, _digest(file, size))


def _digest(file: BinaryIO, size: int) -> str:
    digest = hashlib.blake2b(digest_size=16)
    whole = size <= WHOLE
    length = size if whole else _SAMPLE
    starts = [0] if whole else [(size - _SAMPLE) * n // (_SAMPLES - 1) for n in range(_SAMPLES)]
    for start in starts:
        file.seek(start)
        digest.update(file.read(length))
    return digest.hexdigest()


def _contents(identity: DataIdentity) -> list[tuple[int, str]]:
    return [(file.nbytes, file.digest) for file in identity.files]
