import os
from importlib.util import find_spec

import pytest

from lemix_hpc.engines.vllm.environment import prepare


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
