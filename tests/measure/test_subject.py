"""What is noted of the machine beside its figures."""

from pathlib import Path

import pytest

from lemix_hpc.measure.subject import provenance


def test_clocks_of_the_gpus_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho '0, 1410 MHz, 1980 MHz, 2619 MHz, 700.00 W, 0x0000000000000004'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    [noted] = provenance(["lemix", "profile"], ["host"])["clocks"]
    assert noted.startswith("index,clocks.sm,clocks.max.sm") and "0, 1410 MHz, 1980 MHz" in noted
    command.write_text("#!/bin/sh\nexit 9\n")
    assert "clocks" not in provenance([], []), "no GPU, nothing to note"
