"""Answers to signs of life set the clock, and a drift is told."""

import subprocess
import sys
from pathlib import Path

import pytest

from lemix_hpc.launch.local import environment, mpiexec_command
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.clock_keeper import ClockKeeper
from lemix_hpc.runtime.transport.mailbox import Mail
from lemix_hpc.runtime.transport.run_clock import RunClock

RANKS = Path(__file__).with_name("clock_ranks.py")


class Answers:
    """A mailbox. `asked` counts how often somebody looked."""

    def __init__(self) -> None:
        self.mails: list[Mail] = []
        self.asked = 0

    def poll(self) -> list[Mail]:
        self.asked += 1
        mails, self.mails = self.mails, []
        return mails


def test_an_answer_sets_the_clock(capsys: pytest.CaptureFixture[str]) -> None:
    own = [100.0]
    clock, answers = RunClock(50.0, lambda: own[0]), Answers()
    keeper = ClockKeeper(3, clock, answers)  # type: ignore[arg-type]
    keeper.look()
    assert answers.asked == 0, "nobody waits for an answer"
    assert keeper.ask() == m.Alive(3, 100.0)
    own[0] += 0.002
    answers.mails = [Mail(0, m.TimeIs(100.0, 150.041), None)]
    keeper.look()
    assert clock.monotonic() == pytest.approx(150.041)
    assert capsys.readouterr().out == "clock: +39.0 ms, by which it had drifted from rank 0's\n"
    keeper.look()
    assert answers.asked == 1


@pytest.mark.mpi
def test_signs_of_life_between_ranks_set_a_clock() -> None:
    command = mpiexec_command(2, [sys.executable, "-m", "mpi4py", str(RANKS)])
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "the clock was set" in done.stderr
    assert "ms, by which it had drifted from rank 0's" in done.stdout
