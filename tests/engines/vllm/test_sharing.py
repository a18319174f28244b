"""Training and real vLLM in one process: one copy of the weights, and a prefix cache that knows their version."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def run(module: str, *arguments: str) -> None:
    """Run checks in a process of their own; they say when all of them hold."""
    settings = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    done = subprocess.run(
        [sys.executable, "-m", f"tests.engines.vllm.{module}", *arguments],
        cwd=ROOT,
        env=settings,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all hold" in done.stdout


@pytest.mark.parametrize(
    ("family", "tied", "dtype"),
    [("llama", "untied", "float32"), pytest.param("qwen2", "tied", "bfloat16", marks=pytest.mark.slow)],
)
def test_vllm_serves_what_is_trained(family: str, tied: str, dtype: str, tmp_path: Path) -> None:
    """ZeRO 0 and 1 and an offloaded optimizer, 50 steps each; one copy in memory; refusal; and the way by copies."""
    run("sharing_process", family, tied, dtype, str(tmp_path / family))


def test_the_prefix_cache_never_mixes_versions(tmp_path: Path) -> None:
    """Also that it would without the versions in its hashes. In the same engine: batches that wait until they are due."""
    run("prefix_cache_process", str(tmp_path / "model"))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_vllm_starts_from_the_recipes_weights_and_follows_real_training(dtype: str, tmp_path: Path) -> None:
    """Seeded weights are the torch engine's, vLLM's own memory is freed, and 50 steps are served as Hugging Face has them."""
    run("seeded_process", dtype, str(tmp_path / "model"))
