"""Writing a stage's state with the processor time that serving and training leave.

A thread of the stage would not do, at any priority. Between two pieces it takes the interpreter's lock, and then the stage
waits until that thread has had a processor, which on a busy host is long, and the longer the lower its priority is.
"""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import msgspec

from lemix_hpc.checkpoints import writing_process
from lemix_hpc.checkpoints.host_memory import HostMemory
from lemix_hpc.checkpoints.stage_state import StageState, layout, write_state
from lemix_hpc.checkpoints.tensor_file import Written
from lemix_hpc.checkpoints.writing_process import Failed, Order


class StateWriter:
    """Writes the states of one stage, one at a time. A process does it, where it can read the state's memory."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._memory: HostMemory | None = None

    def write(self, state: StageState, path: Path) -> Written:
        """Write a file and wait until it is on disk. Raises OSError."""
        if state.memory is None:
            return write_state(state, path)
        process = self._started(state.memory)
        assert process.stdin is not None and process.stdout is not None, "they are pipes"
        try:
            process.stdin.write(msgspec.json.encode(Order(str(path), *layout(state))) + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if not answer:
            self.close()
            raise OSError(errno.EIO, f"the process that writes it has ended with code {process.returncode}", str(path))
        told = msgspec.json.decode(answer, type=Written | Failed)
        if isinstance(told, Failed):
            raise OSError(told.errno, told.message, told.path)
        return told

    def close(self) -> None:
        """The last call, or for a while."""
        if self._process is not None:
            self._process.communicate()
        self._process = self._memory = None

    def _started(self, memory: HostMemory) -> subprocess.Popen[bytes]:
        """The process that reads this memory."""
        if self._process is not None and self._memory is memory:
            return self._process
        self.close()
        command = [sys.executable, "-m", writing_process.__name__, str(memory.descriptor), str(memory.nbytes)]
        self._memory = memory
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[memory.descriptor]
        )
        return self._process
