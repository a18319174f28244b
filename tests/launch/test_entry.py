"""What a rank sets before anything is loaded."""

import os
from typing import Any

import pytest

from lemix_hpc.launch import entry


class Host:
    """The ranks of a host: this one and seven others."""

    def Get_size(self) -> int:  # noqa: N802  as in MPI
        return 8


def test_ranks_of_a_job_compile_into_directories_of_their_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "0")
    placed: list[Any] = []
    monkeypatch.setattr(entry, "keep_on_host", placed.append)
    host: Any = Host()
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    entry._set_environment(host)
    assert placed == [] and os.environ["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    entry._set_environment(host)
    assert placed == [os.environ]
