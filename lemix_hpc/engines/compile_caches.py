"""Where compilers keep what they have made for a GPU: on the host, since in a home that hosts share it goes stale."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

_PLACES = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "extensions",
    "VLLM_CACHE_ROOT": "vllm",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "CUDA_CACHE_PATH": "cuda",
}
"""The variables that say where, and the directories that they get."""


def keep_on_host(environment: MutableMapping[str, str]) -> None:
    """Let what the user has not placed be in a directory for temporary files of this host, which only this user may enter. It
    stays for the next run. Where somebody else has that name, nothing is changed, and a warning printed."""
    root = Path(tempfile.gettempdir()) / f"lemix_compiled-{os.geteuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
        print(
            f"warning: {root} can be written by others, and is not used: compiled kernels go to your home", flush=True
        )
        return
    for name, directory in _PLACES.items():
        environment.setdefault(name, str(root / directory))
