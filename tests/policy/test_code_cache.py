"""What is kept of machine code, for whom, and what happens where it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
import logging
import sys
from lemix_hpc.policy.jit import compiled
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)

@compiled
def inner(x):
    return x + {added}

@compiled
def outer(x):
    return 2 * inner(x)

print(outer(20))
"""


def run(script: Path, cache: Path) -> list[str]:
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def script(folder: Path, added: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "module.py"
    path.write_text(MODULE.format(added=added))
    return path


def test_another_checkout_of_the_same_sources_finds_what_one_has_compiled(tmp_path: Path) -> None:
    assert run(script(tmp_path / "one"), tmp_path) == ["compiling outer", "42"]
    assert run(script(tmp_path / "other"), tmp_path) == ["42"]
    changed = script(tmp_path / "other", added=2)
    assert run(changed, tmp_path) == ["compiling outer", "44"], "a function that another one calls has changed"


def test_where_nothing_can_be_written_it_says_so_and_compiles_each_time(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for _ in range(2):
        first, second, answer = run(script(tmp_path / "one"), tmp_path / "file")
        assert first.startswith(f"machine code cannot be kept in {tmp_path}/file/lemix-hpc/compiled-")
        assert "(Not a directory)" in first and "set XDG_CACHE_HOME" in first
        assert (second, answer) == ("compiling outer", "42")


@pytest.mark.parametrize("package", ["policy", "simulator"])
def test_a_change_in_any_source_of_a_package_gives_another_directory(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lemix_hpc.policy import code_cache

    for name in ("policy", "simulator"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(code_cache, "files", lambda _: tmp_path)
    before = code_cache._digest()
    assert code_cache._digest() == before
    (tmp_path / package / "a.py").write_text("x = 2\n")
    assert code_cache._digest() != before
