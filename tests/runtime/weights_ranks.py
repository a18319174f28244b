"""Run by test_run_weights.py: one rank of a run, as `lemix_hpc.launch.local_rank`, whose stages write down their weights."""

import sys
from pathlib import Path
from typing import Any

from lemix_hpc.engines.build import build_engine
from lemix_hpc.launch.entry import run_rank
from lemix_hpc.runtime import main


def build_engine_that_writes(recipe: Any, *, node: int, stage: int, **others: Any) -> Any:
    engine = build_engine(recipe, node=node, stage=stage, **others)
    close = engine.close

    def write_and_close() -> None:
        data = b"".join(bytes(payload.data) for payload in engine.read_weights())
        Path(sys.argv[1], f"weights-{node}-{stage}").write_bytes(data)
        close()

    engine.close = write_and_close  # type: ignore[method-assign]
    return engine


if __name__ == "__main__":  # not in processes that vLLM starts
    main.build_engine = build_engine_that_writes  # type: ignore[attr-defined]
    run_rank(sys.argv[1])
