"""What the journals before an attempt come to, in one file, so that nobody has to read them again.

The journals stay: where a snapshot is missing or damaged, they are folded from the snapshot before it on, or from the first.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from lemix_hpc.config.text_file import BROKEN_JSON
from lemix_hpc.records.attempts import Attempt
from lemix_hpc.records.files import replace
from lemix_hpc.records.fold import Fold
from lemix_hpc.records.journal import Answered
from lemix_hpc.records.last_answers import LastAnswers

SNAPSHOT = "folded.bin"
SCHEMA = 1
_CHECKSUM_BYTES = 4


class _Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """`fold` of all up to `journal_bytes` of the journal of attempt `last`."""

    schema: int
    last: int
    journal_bytes: int
    fold: msgspec.Raw


def keep(attempt: Attempt, fold: Fold, line: Sequence[Attempt], journal_bytes: int) -> None:
    """Before an attempt starts: keep in its directory what those before it come to, and remove the snapshots that are older
    than the last. A disk that does not take it is told, and no more: the journals are there."""
    encoder = msgspec.msgpack.Encoder(enc_hook=_to_list)
    kept = _Snapshot(SCHEMA, line[-1].number, journal_bytes, msgspec.Raw(encoder.encode(fold)))
    content = encoder.encode(kept)
    try:
        replace(attempt.path / SNAPSHOT, zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "little") + content, sync=True)
        for old in line[:-1]:
            (old.path / SNAPSHOT).unlink(missing_ok=True)
    except OSError as error:
        print(f"the journals could not be folded into {attempt.path / SNAPSHOT}: {error.strerror or error}", flush=True)


def newest(line: Sequence[Attempt]) -> tuple[Fold, int, list[str]]:
    """The newest whole snapshot of a lineage, the place in it of the first attempt that is not folded, and what is wrong with
    newer ones, for people. Without any an empty fold. Raises OSError if one cannot be read."""
    problems: list[str] = []
    for place in range(len(line) - 1, 0, -1):
        path, start = line[place].path / SNAPSHOT, line[place].started
        assert start is not None, "only attempts that started are in a lineage"
        try:
            fold = _read(path, line[place - 1].number, start.journal_bytes)
        except FileNotFoundError:
            continue
        except (ValueError, *BROKEN_JSON) as error:
            problems.append(f"{path}: {error}; the journals before it are read instead")
            continue
        return fold, place, problems
    return Fold(), 0, problems


def _read(path: Path, last: int, journal_bytes: int) -> Fold:
    content = path.read_bytes()
    checksum, content = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
    if zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
        raise ValueError("its checksum is not the one that was written")
    found = msgspec.msgpack.decode(content, type=_Snapshot)
    if (found.schema, found.last, found.journal_bytes) != (SCHEMA, last, journal_bytes):
        raise ValueError("it is of other journals, or of another version")
    return msgspec.msgpack.decode(found.fold, type=Fold, dec_hook=_from_list)


def _to_list(answers: Any) -> list[Answered]:
    assert isinstance(answers, LastAnswers), "all else are records"
    return list(answers)


def _from_list(kind: type, content: Any) -> LastAnswers:  # noqa: ARG001
    answers = LastAnswers()
    for answer in msgspec.convert(content, list[Answered]):
        answers.add(answer)
    return answers
