"""Where an attempt on this machine keeps what nobody needs behind it: nothing stays of processes that were killed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

_SHARED_MEMORY = Path("/dev/shm")
_BACKING_DIRECTORIES = ("OMPI_MCA_btl_sm_backing_directory", "OMPI_MCA_btl_vader_backing_directory")
"""Where Open MPI 5 and 4 put the memory that ranks of a host share."""


@contextlib.contextmanager
def scratch() -> Iterator[dict[str, str]]:
    """Variables for the environment of an attempt's processes: its temporary files and shared memory are removed behind it."""
    with contextlib.ExitStack() as stack:
        files = stack.enter_context(TemporaryDirectory(prefix="lemix-", ignore_cleanup_errors=True))
        variables = {"TMPDIR": files}
        if _SHARED_MEMORY.is_dir():
            memory = TemporaryDirectory(prefix="lemix-", dir=_SHARED_MEMORY, ignore_cleanup_errors=True)
            variables |= dict.fromkeys(_BACKING_DIRECTORIES, stack.enter_context(memory))
        yield variables
