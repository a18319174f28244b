import subprocess
import sys
from pathlib import Path

import pytest

from lemix_hpc.launch.local import environment, mpiexec_command

RANKS = Path(__file__).with_name("mailbox_ranks.py")


@pytest.mark.mpi
def test_messages_and_tensors_of_all_sizes_arrive_whole_and_in_order() -> None:
    command = mpiexec_command(3, [sys.executable, "-m", "mpi4py", str(RANKS)])
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("all 120 messages in order") == 3
