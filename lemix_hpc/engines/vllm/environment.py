"""How vLLM is told to behave inside our processes: by environment variables, before it is imported."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID

from lemix_hpc.config.errors import UserError

VERSION = "0.32"
LONGEST_DIRECTORY = 107 - len("/") - len(str(UUID(int=0)))
"""Of a socket that vLLM names by a UUID, in bytes: what the kernel takes."""


def prepare(sockets: Path | None = None) -> None:
    """Set what the user has not set. `sockets`: where vLLM's processes meet, by default in the directory of temporary files.

    Raises UserError where vLLM cannot be used.
    """
    if sockets is not None and len(str(sockets)) <= LONGEST_DIRECTORY:
        os.environ.setdefault("VLLM_RPC_BASE_PATH", str(sockets))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    # The engine process must not inherit MPI's and torch's state, which a fork would.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    try:
        import vllm
    except ImportError as error:
        raise UserError(
            f"engine.kind is vllm, and vLLM cannot be imported here ({error}). Install it with "
            "`pip install lemix-hpc[vllm]` (docs/vllm.md says how on machines without GPUs), or set engine.kind: torch."
        ) from error
    if not vllm.__version__.startswith(VERSION):
        raise UserError(
            f"vLLM {vllm.__version__} is installed, and this release of lemix-hpc works with {VERSION}.x; install that, or set "
            "engine.kind: torch"
        )
