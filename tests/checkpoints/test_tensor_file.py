import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from lemix_hpc.checkpoints import tensor_file
from lemix_hpc.checkpoints.tensor_file import TensorSpec

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@given(st.lists(SHAPES, max_size=5), st.integers(1, 50))
def test_the_library_reads_what_was_written(shapes: list[tuple[int, ...]], piece: int) -> None:
    values = {f"t{i}": np.random.default_rng(i).random(shape, np.float32) for i, shape in enumerate(shapes)}
    specs = [TensorSpec(name, array.shape) for name, array in values.items()]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        patch.setattr(tensor_file, "PIECE", piece)
        at = Path(directory)
        written = tensor_file.write(at / "x", specs, lambda s: values[s.name].tobytes(), {"format": "pt"})
        assert tensor_file.checksum(at / "x") == written
        assert written.nbytes == (at / "x").stat().st_size
        read = load_file(at / "x")
    assert read.keys() == values.keys()
    for name, array in values.items():
        assert read[name].dtype == np.float32
        assert np.array_equal(read[name], array)


def test_a_full_disk_is_an_error_of_the_file() -> None:
    spec = TensorSpec("t", (1 << 20,))
    with pytest.raises(OSError, match="No space left"):
        tensor_file.write(Path("/dev/full"), [spec], lambda s: bytes(s.nbytes), {})
