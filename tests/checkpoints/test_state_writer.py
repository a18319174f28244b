from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lemix_hpc.checkpoints.host_memory import HostMemory
from lemix_hpc.checkpoints.stage_state import StageState, write_state
from lemix_hpc.checkpoints.state_writer import StateWriter


@pytest.fixture
def writer() -> Iterator[StateWriter]:
    writer = StateWriter()
    yield writer
    writer.close()


def shared(seed: int) -> StageState:
    """Two tensors, one behind the other in memory that another process can read."""
    memory = HostMemory(4 * 11)
    values = np.frombuffer(memory.view, np.float32)
    values[:] = np.random.default_rng(seed).random(11, np.float32)
    return StageState({"b": values[:6].reshape(2, 3), "a": values[6:]}, 3, 4, "float32", memory)


def test_the_process_writes_what_a_thread_would(tmp_path: Path, writer: StateWriter) -> None:
    for seed in range(2):  # a writer that is given other memory reads that
        state = shared(seed)
        assert writer.write(state, tmp_path / "one") == write_state(state, tmp_path / "other")
        assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_it_reads_what_is_in_the_memory_now(tmp_path: Path, writer: StateWriter) -> None:
    state = shared(0)
    first = writer.write(state, tmp_path / "x")
    state.tensors["a"][0] += 1.0
    assert writer.write(state, tmp_path / "x") != first
    assert writer.write(state, tmp_path / "x") == write_state(state, tmp_path / "y")


def test_a_state_without_shared_memory_is_written_here(tmp_path: Path, writer: StateWriter) -> None:
    state = StageState({"a": np.ones(3, np.float32)}, 0, 0, "float32")
    assert writer.write(state, tmp_path / "x") == write_state(state, tmp_path / "y")


def test_errors_of_the_disk_are_those_of_the_file(tmp_path: Path, writer: StateWriter) -> None:
    state = shared(0)
    with pytest.raises(FileNotFoundError, match="missing/x"):
        writer.write(state, tmp_path / "missing" / "x")
    with pytest.raises(OSError, match="No space left"):
        writer.write(state, Path("/dev/full"))
    assert writer.write(state, tmp_path / "x") == write_state(state, tmp_path / "y")


def test_a_process_that_died_fails_one_file(tmp_path: Path, writer: StateWriter) -> None:
    state = shared(0)
    writer.write(state, tmp_path / "x")
    process = writer._process
    assert process is not None
    process.kill()
    process.wait()
    with pytest.raises(OSError, match="ended with code -9"):
        writer.write(state, tmp_path / "x")
    assert writer.write(state, tmp_path / "x") == write_state(state, tmp_path / "y")
