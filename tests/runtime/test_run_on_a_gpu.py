"""A whole run on a GPU that two stages share: `pytest -m cuda`."""

from typing import Any

import pytest
import torch

from tests.runtime.conftest import SUMS, Run, sums_training, tiny_llama

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_two_stages_on_one_gpu_train_as_on_the_cpu_while_they_serve(lemix_run: Run) -> None:
    source = {"kind": "poisson", "rate": 25, "requests": 60, "lengths": "lmsys-chat"}
    recipe: dict[str, Any] = {
        "nodes": {"count": 1, "stages": 2},
        "model": {"config": tiny_llama()},
        "serving": {"source": source, "max_prompt_tokens": 64, "prompts": {"path": str(SUMS)}},
        "training": sums_training(release="sync", micro_batches_per_step=4, micro_batches=48),
    }
    engine = {"kind": "torch", "dtype": "float32", "share_devices": True}
    known = lemix_run(recipe | {"name": "cpu", "engine": engine | {"device": "cpu"}})
    found = lemix_run(recipe | {"name": "gpu", "engine": engine | {"device": "cuda"}})
    assert found.losses() == pytest.approx(known.losses(), rel=1e-3)
    assert found.report["serving"]["finished"] == 60
    for spans in found.serving_batches().values():
        assert len({span["version"] for span in spans}) == 1
