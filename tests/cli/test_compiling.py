"""Whoever waits for the compiler knows it."""

import numba
import pytest

from lemix_hpc.cli.compiling import told_when_compiling


def test_it_is_said_once_and_only_if_something_is_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = numba.njit(lambda number: number + 1), numba.njit(lambda number: number + 2)
    with told_when_compiling():
        assert first(1) + second(1) == 5
    assert capsys.readouterr().err == "Compiling the simulator, once after an installation: a minute or two\n"
    with told_when_compiling():
        first(2)
    first(3.0)
    assert capsys.readouterr().err == ""
