"""What one attempt leaves for the scheduler of the next."""

from pathlib import Path

import msgspec
import pytest

from lemix_hpc.policy.memory import LessonMemory, Memory
from lemix_hpc.profiling.coefficients import CoefficientFile, load_coefficients
from lemix_hpc.profiling.hardware import Hardware
from lemix_hpc.records.schema import MEMORY, RECALLED, SchedulerMemory
from lemix_hpc.run_setup.recollection import digest, left_by, started_with
from tests.runtime.conftest import A100

LESSON = LessonMemory(0, "serve", (2.0,), ((1.0,),), (2.0,), (3, 0.5), (3, 0.5), (3, 0.1), None)
LEARNED = Memory(((LESSON,),), 0.25, (4, 5, 6))


def hardware(file: CoefficientFile) -> Hardware:
    return Hardware(file, (file,), (file,), (0,))


@pytest.fixture
def file() -> CoefficientFile:
    return load_coefficients(A100)


def test_the_same_stage_times_are_known_by_what_they_say(file: CoefficientFile) -> None:
    renamed = file.model_copy(update={"provenance": {"source": "elsewhere"}, "hardware": "other"})
    assert digest(hardware(file)) == digest(hardware(renamed))
    assert file.per_layer is not None
    forward = file.per_layer.forward.model_copy(update={"a": 7.0})
    changed = file.model_copy(update={"per_layer": file.per_layer.model_copy(update={"forward": forward})})
    assert digest(hardware(file)) != digest(hardware(changed))


def test_what_was_learned_of_the_same_times_is_taken_over(tmp_path: Path, file: CoefficientFile) -> None:
    assert left_by(tmp_path, hardware(file)) is None
    kept = SchedulerMemory(digest(hardware(file)), LEARNED)
    (tmp_path / MEMORY).write_bytes(msgspec.json.encode(kept))
    assert left_by(tmp_path, hardware(file)) == LEARNED
    kept = SchedulerMemory("others", LEARNED)
    (tmp_path / MEMORY).write_bytes(msgspec.json.encode(kept))
    assert left_by(tmp_path, hardware(file)) == Memory(outputs=(4, 5, 6))
    assert started_with(tmp_path) is None
    (tmp_path / RECALLED).write_bytes(msgspec.json.encode(kept))
    assert started_with(tmp_path) == LEARNED


def test_what_cannot_be_read_is_learned_anew(
    tmp_path: Path, file: CoefficientFile, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / MEMORY).write_text('{"coefficients": "x", "memory": {"outp')
    assert left_by(tmp_path, hardware(file)) is None
    assert f"damaged: {tmp_path / MEMORY}" in capsys.readouterr().out
