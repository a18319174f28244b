"""Training and real vLLM on one copy of the weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(("family", "tied", "dtype"), [("llama", "untied", "float32"), ("qwen2", "tied", "bfloat16")])
def test_vllm_serves_what_is_trained(family: str, tied: str, dtype: str, tmp_path: Path) -> None:
    """ZeRO 0 and 1 and an offloaded optimizer, 50 steps each; one copy in memory; refusal; and the way by copies."""
    arguments = [family, tied, dtype, str(tmp_path / family)]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.engines.vllm.sharing_process", *arguments],
        cwd=ROOT,
        env=settings,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "all hold" in run.stdout
