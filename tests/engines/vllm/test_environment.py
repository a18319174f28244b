import os

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
