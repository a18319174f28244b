"""Where an attempt on this machine keeps what nobody needs behind it: nothing stays of processes that were killed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from lemix_hpc.engines.host_files import SHARED_MEMORY, own_directory, remove_abandoned

_BACKING_DIRECTORIES = ("OMPI_MCA_btl_sm_backing_directory", "OMPI_MCA_btl_vader_backing_directory")
"""Where Open MPI 5 and 4 put the memory that ranks of a host share."""


@contextlib.contextmanager
def scratch() -> Iterator[dict[str, str]]:
    """Variables for the environment of an attempt's processes: its temporary files and shared memory are removed behind it."""
    remove_abandoned()
    with contextlib.ExitStack() as stack:
        variables = {"TMPDIR": str(stack.enter_context(own_directory()))}
        if SHARED_MEMORY.is_dir():
            memory = stack.enter_context(own_directory(SHARED_MEMORY))
            variables |= dict.fromkeys(_BACKING_DIRECTORIES, str(memory))
        yield variables
