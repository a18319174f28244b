"""The calls of the CUDA runtime, in processes of their own, with a stand-in for its library; and what a GPU itself does."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lemix_hpc.engines.torch.cuda_ipc import CudaError, CudaRuntime
from lemix_hpc.launch.local import environment, mpiexec_command

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in, compiled."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    made = tmp_path_factory.mktemp("cudart") / "libcudart_stand_in.so"
    source = HERE / "cudart_stand_in.c"
    subprocess.run([compiler, "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(made), str(source), "-lrt"], check=True)
    return made


@pytest.mark.mpi
def test_processes_hand_tensors_on_through_each_others_memory(library: Path) -> None:
    before = set(Path("/dev/shm").iterdir())
    command = mpiexec_command(3, [sys.executable, "-m", "mpi4py", str(HERE / "ipc_ranks.py"), str(library)])
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    counts = [tuple(map(int, found)) for found in re.findall(r"(\d+) of (\d+) handed on", done.stderr)]
    assert len(counts) == 3
    # A round's tensors all find room: nobody is more than one ahead.
    assert all(handed_on > all_of_them / 2 for handed_on, all_of_them in counts)
    left = {path.name for path in set(Path("/dev/shm").iterdir()) - before}
    assert not [name for name in left if name.startswith(("lemix-board", "cudart-stand-in"))]


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has it")
def test_a_torch_without_cuda_has_no_runtime_for_it() -> None:
    with pytest.raises(CudaError, match="torch has not loaded libcudart"):
        CudaRuntime.of_torch()


@pytest.mark.mpi
@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_two_processes_on_a_gpu_hand_on_what_queued_kernels_write_and_overwrite() -> None:
    command = mpiexec_command(2, [sys.executable, "-m", "mpi4py", str(HERE / "ipc_gpu_ranks.py")])
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "rank 1: 60 of 60" in done.stderr, "all arrived as they were"
    assert re.search(r"rank 0: [1-9]\d* of 60", done.stderr), "some of them by CUDA IPC"
