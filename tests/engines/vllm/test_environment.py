import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.vllm import build_stage
from lemix_hpc.engines.vllm.check import refusal
from lemix_hpc.engines.vllm.environment import RUNNER, prepare


def test_what_decides_over_the_endpoint_is_not_vllms(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("vllm")
    monkeypatch.setattr(os, "environ", dict(os.environ) | {"VLLM_API_KEY": "x", "VLLM_SERVER_DEV_MODE": "1"})
    prepare()
    assert not {"VLLM_API_KEY", "VLLM_SERVER_DEV_MODE"} & set(os.environ)
    told = capsys.readouterr().out
    assert "warning: VLLM_API_KEY is set, and not used" in told and "VLLM_SERVER_DEV_MODE" in told


def test_stages_want_no_nccl_and_no_flashinfer_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for name in ("VLLM_DISABLE_PYNCCL", "VLLM_USE_FLASHINFER_SAMPLER"):
        os.environ.pop(name, None)
    prepare()
    assert os.environ["VLLM_DISABLE_PYNCCL"] == "1"
    assert ("VLLM_USE_FLASHINFER_SAMPLER" in os.environ) == (find_spec("flashinfer") is None)
    os.environ["VLLM_DISABLE_PYNCCL"] = "0"
    prepare()
    assert os.environ["VLLM_DISABLE_PYNCCL"] == "0", "what the user sets stays"


SCORES = {"source": {"kind": "poisson", "rate": 1, "requests": 3}}
RUNNERS = [
    ("1", 2, {"mode": "generate", **SCORES}, True),
    ("1", 2, {"http": {}}, True),
    ("1", 1, {"http": {}}, False),
    ("1", 2, {"mode": "score", **SCORES}, False),
    ("1", 2, None, False),
    ("0", 2, {"http": {}}, False),
    ("", 2, {"http": {}}, False),
]


@pytest.mark.parametrize(("value", "stages", "serving", "refused"), RUNNERS)
def test_the_second_runner_is_refused_where_tokens_would_have_to_go_from_stage_to_stage(
    value: str, stages: int, serving: Any, refused: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ) | {RUNNER: value})
    recipe = Recipe.model_validate({"nodes": {"stages": stages}, "engine": {"kind": "vllm"}, "serving": serving})
    why = refusal(recipe)
    assert (why is not None) == refused
    if why is not None:
        assert why.startswith(f"engine.kind: {RUNNER} is 1") and "unset it, or set nodes.stages: 1" in why
        pytest.importorskip("vllm")
        with pytest.raises(UserError, match=RUNNER):
            build_stage(recipe, node=0, stage=0, device="cpu", meeting=tmp_path)
