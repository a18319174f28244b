"""Break a run on purpose, at random: to see that nothing is lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from lemix_hpc.config.errors import UserError
from lemix_hpc.launch.daemons import CONTROLLER, hosts_of, own_daemons
from lemix_hpc.launch.rundir import RunDir
from lemix_hpc.launch.states import FINAL, run_state

Kind = Literal["rank", "pause", "engine", "step", "slurmd", "controller"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""`rank`: kill a rank. `pause`: stop one, and let it go on a while later. `engine`: kill a node's vLLM engine process. `step`:
kill all ranks at once, through Slurm. `slurmd`, `controller`: on a one-machine cluster kill the slurmd of one of the job's
hosts, or slurmctld, and start it again a while later."""
HARMLESS: frozenset[Kind] = frozenset({"pause", "slurmd", "controller"})
"""A run should survive them without another attempt."""

LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Blow:
    """What was done; `pid` 0 for a whole step, and for Slurm's daemons."""

    kind: Kind
    pid: int
    what: str


class Punisher:
    """Works on the processes of a run on this host; a step is Slurm's, wherever it is.

    `mean_s`: between two blows; `pause_s`: how long a rank is stopped, or a daemon down. Raises UserError for daemons that are
    not the user's.
    """

    def __init__(self, run: RunDir, kinds: tuple[Kind, ...], *, mean_s: float, pause_s: float, seed: int) -> None:
        self._run = run
        self._kinds = kinds
        self._mean_s = mean_s
        self._pause_s = pause_s
        self._random = random.Random(seed)
        self._struck = -1
        self._daemons = own_daemons() if {"slurmd", "controller"} & set(kinds) else None

    def blows(self, count: int | None) -> Iterator[Blow]:
        """Strike `count` times, or until the run has ended; the times between two blows are exponential.

        There is a blow only while the run serves and trains: one that is starting is left alone. Raises UserError if there is
        nothing of this run here.
        """
        done = 0
        while (count is None or done < count) and self._waited(self._random.expovariate(1 / self._mean_s)):
            attempt = self._run.last_attempt
            blow = self._strike()
            if blow is not None and attempt is not None:
                done += 1
                # A kill ends the attempt, and the next one is waited for; a pause may be over in time.
                self._struck = self._struck if blow.kind in HARMLESS else attempt.number
                yield blow

    def _waited(self, seconds: float) -> bool:
        """Whether the run has worked for so long; False when it has ended."""
        worked = 0.0
        while worked < seconds:
            if run_state(self._run, self._run.read_record()) in FINAL:
                return False
            time.sleep(min(LOOK_EVERY_S, seconds - worked))
            worked += LOOK_EVERY_S if self._works else 0.0
        return True

    @property
    def _works(self) -> bool:
        """Facts are there from the first instant at which an attempt works."""
        attempt = self._run.last_attempt
        if attempt is None or attempt.number == self._struck:
            return False
        return (attempt.path / "facts.json").exists() and attempt.ended is None

    def _strike(self) -> Blow | None:
        ways: Mapping[Kind, Callable[[], Blow | None]] = {
            "rank": self._kill_rank,
            "pause": self._pause_rank,
            "engine": self._kill_engine,
            "step": self._kill_step,
            "slurmd": self._fell_slurmd,
            "controller": lambda: self._fell("controller", CONTROLLER),
        }
        return ways[self._random.choice(self._kinds)]()

    def _kill_rank(self) -> Blow | None:
        return self._one_of(ranks(self._run), "rank", signal.SIGKILL, "killed")

    def _kill_engine(self) -> Blow | None:
        return self._one_of(engines(self._run), "engine", signal.SIGKILL, "killed")

    def _pause_rank(self) -> Blow | None:
        blow = self._one_of(ranks(self._run), "pause", signal.SIGSTOP, f"stopped for {self._pause_s:g} s")
        if blow is not None:
            time.sleep(self._pause_s)
            with contextlib.suppress(ProcessLookupError):
                os.kill(blow.pid, signal.SIGCONT)
        return blow

    def _one_of(self, pids: list[int], kind: Kind, number: signal.Signals, done: str) -> Blow | None:
        if not pids:
            return None
        pid = self._random.choice(sorted(pids))
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return None
        except PermissionError as error:
            raise UserError(f"process {pid} of {self._run.id} is not yours: {error.strerror}") from error
        return Blow(kind, pid, f"process {pid} {done}")

    def _kill_step(self) -> Blow | None:
        job = self._job("step")
        done = subprocess.run(
            ["squeue", "--noheader", "--steps", "--jobs", job, "--format", "%i"],
            capture_output=True,
            text=True,
            check=False,
        )
        steps = [step for step in done.stdout.split() if step.rpartition(".")[2].isdecimal()]
        if not steps:
            return None
        subprocess.run(["scancel", "--signal=KILL", steps[-1]], capture_output=True, check=False)
        return Blow("step", 0, f"step {steps[-1]} killed")

    def _fell_slurmd(self) -> Blow | None:
        hosts = hosts_of(self._job("slurmd"))
        return self._fell("slurmd", self._random.choice(hosts)) if hosts else None

    def _fell(self, kind: Kind, daemon: str) -> Blow:
        assert self._daemons is not None, "looked for at the start"
        self._daemons.kill(daemon)
        try:
            time.sleep(self._pause_s)
        finally:
            self._daemons.restart(daemon)
        return Blow(kind, 0, f"{kind} of {daemon} killed, and started again after {self._pause_s:g} s")

    def _job(self, kind: Kind) -> str:
        job = self._run.read_record().job
        if job is None:
            raise UserError(f"{self._run.id} is no Slurm job; leave out the kind `{kind}`")
        return job


def ranks(run: RunDir) -> list[int]:
    """Pids of a run's ranks on this host."""
    return [pid for pid, command in _commands() if _is_rank(command, run)]


def engines(run: RunDir) -> list[int]:
    """Pids of vLLM's engine processes below a run's ranks on this host."""
    of_run = set(ranks(run))
    return [
        pid
        for pid, command in _commands()
        if command[0].startswith(b"VLLM::EngineCore") and of_run.intersection(_ancestors(pid))
    ]


def _is_rank(command: list[bytes], run: RunDir) -> bool:
    # mpiexec and srun have the same words behind their own.
    is_python = Path(os.fsdecode(command[0])).name.startswith("python")
    return is_python and b"mpi4py" in command and os.fsencode(run.path) in command


def _commands() -> Iterator[tuple[int, list[bytes]]]:
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                command = (directory / "cmdline").read_bytes().split(b"\0")
                if command[0]:
                    yield int(directory.name), command


def _ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return
        pid = int(stat.rpartition(")")[2].split()[1])
        yield pid
