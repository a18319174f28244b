"""The shell completes commands, options and runs."""

from pathlib import Path

import pytest

from tests.cli.conftest import REPOSITORY, Command


def completed(lemix: Command, typed: str) -> list[str]:
    words = len(typed.split()) - (not typed.endswith(" "))
    done = lemix(_LEMIX_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=str(words))
    return str(done.stdout).split()


def test_commands_and_options(lemix: Command) -> None:
    assert completed(lemix, "lemix wat") == ["watch"]
    assert {"--html", "--json", "--png"} <= set(completed(lemix, "lemix report --"))


def test_runs_the_newest_first(lemix: Command, inside: Command, tmp_path: Path) -> None:
    emulated, few = REPOSITORY / "recipes" / "emulated-a100.yaml", "serving.source.requests=5"
    for name in ("first", "second"):
        assert inside("simulate", emulated, "--set", few, "--out", tmp_path / "runs" / name).returncode == 0
    assert completed(lemix, "lemix watch ") == ["last", "second", "first"]
    assert completed(lemix, "lemix report fi") == ["first"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_are_lines_for_the_shell(lemix: Command, shell: str) -> None:
    assert "_LEMIX_COMPLETE" in lemix(_LEMIX_COMPLETE=f"source_{shell}").stdout
