"""A stage of real vLLM that prepares batches before their activations come."""

import os
import subprocess
import sys
from pathlib import Path

from tests.engines.vllm.conftest import hugging_face
from tests.engines.vllm.test_sharing import ROOT


def test_a_stage_prepares_a_batch_trains_and_then_runs_it(tmp_path: Path) -> None:
    """Also batches that only tell what is over, and preparations that fail or never end."""
    hugging_face("llama", tied=False).save_pretrained(tmp_path / "model")
    settings = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.engines.vllm.expecting_process"]
    first = subprocess.Popen([*command, "0", str(tmp_path)], cwd=ROOT, env=settings, stdin=subprocess.PIPE)
    try:
        done = subprocess.run(
            [*command, "1", str(tmp_path)],
            cwd=ROOT,
            env=settings,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        first.communicate()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all hold" in done.stdout
