"""Compilers keep their files on the host."""

import os
import tempfile
from pathlib import Path

import pytest

from lemix_hpc.engines.compile_caches import keep_on_host


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path / f"lemix_compiled-{os.geteuid()}"


def test_what_the_user_has_not_placed_is_in_a_directory_of_the_host_that_stays(root: Path) -> None:
    given = {"TRITON_CACHE_DIR": "/mine", "PATH": "/bin"}
    for _ in range(2):
        keep_on_host(given)
    assert given["TRITON_CACHE_DIR"] == "/mine" and given["PATH"] == "/bin"
    placed = [given[name] for name in ("TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT", "FLASHINFER_WORKSPACE_BASE")]
    assert placed == [str(root / name) for name in ("inductor", "vllm", "flashinfer")]
    assert root.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_others_may_write_is_not_used(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root.mkdir()
    root.chmod(0o777)
    given: dict[str, str] = {}
    keep_on_host(given)
    assert given == {} and "can be written by others" in capsys.readouterr().out


def test_a_link_of_somebody_else_is_not_followed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    root.symlink_to(tmp_path / "elsewhere")
    given: dict[str, str] = {}
    keep_on_host(given)
    assert given == {}
