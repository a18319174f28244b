"""How vLLM is told to behave inside our processes: by environment variables, before it is imported."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from uuid import UUID

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe

VERSION = "0.32"
RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
LONGEST_DIRECTORY = 107 - len("/") - len(str(UUID(int=0)))
"""Of a socket that vLLM names by a UUID, in bytes: what the kernel takes."""


_DECIDED_HERE = (
    "VLLM_API_KEY",  # keys are those of serving.http
    "VLLM_SERVER_DEV_MODE",  # calls for developers
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE",  # what clients are told goes into no log
    "VLLM_ALLOW_INSECURE_SERIALIZATION",
    "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION",
    "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH",
    "VLLM_USE_RUST_FRONTEND",
    "VLLM_MAX_N_SEQUENCES",  # limits of a call are those of the endpoint
    "VLLM_MAX_COMPLETION_PROMPTS",
)
"""Variables that would let somebody in, keep everybody out, or allow what the endpoint does not."""


def prepare(sockets: Path | None = None) -> None:
    """Set what the user has not set. `sockets`: where vLLM's processes meet, by default in the directory of temporary files.

    Raises UserError where vLLM cannot be used.
    """
    if sockets is not None and len(str(sockets)) <= LONGEST_DIRECTORY:
        os.environ.setdefault("VLLM_RPC_BASE_PATH", str(sockets))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault(RUNNER, "0")
    # Stages hand activations on by MPI. NCCL between them would only take memory, and refuses two on one GPU.
    os.environ.setdefault("VLLM_DISABLE_PYNCCL", "1")
    if find_spec("flashinfer") is None:
        # On GPUs vLLM takes it to be there, and asks for it when a stage begins; PyTorch chooses tokens as well.
        os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    for name in _DECIDED_HERE:
        if os.environ.pop(name, None) is not None:
            print(f"warning: {name} is set, and not used: the recipe's serving.http decides over that", flush=True)
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


def runner_refusal(recipe: Recipe) -> str | None:
    """Why the model runner that the environment asks for cannot serve this recipe, with the key in front; None if it can.

    vLLM's second one sends each sampled token from the last stage to the others by NCCL, which our stages do not take part in:
    they get it with their next batch, and the second runner does not look there.
    """
    serving = recipe.serving
    if serving is None or recipe.nodes.stages == 1 or (serving.mode == "score" and serving.http is None):
        return None  # no token goes in that came out before
    if os.environ.get(RUNNER, "").strip() in ("", "0"):
        return None
    return (
        f"engine.kind: {RUNNER} is {os.environ[RUNNER]}, and vLLM's second model runner hands tokens from stage to stage by "
        "NCCL, which is not built here; unset it, or set nodes.stages: 1"
    )
