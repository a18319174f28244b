"""Which rank died first, and of what, from what srun or mpiexec printed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from signal import Signals, strsignal

_SRUN = re.compile(r"^srun: error: (?P<host>\S+): tasks? (?P<ranks>[\d,-]+): (?P<what>.+)$", re.MULTILINE)
_SRUN_NODE = re.compile(r"^srun: error: Node failure on (?P<host>\S+)", re.MULTILINE)
_OPEN_MPI = re.compile(
    r"noticed that process rank (?P<rank>\d+)\s+with PID \d+ on node\s+(?P<host>\S+)\s+exited\s+on\s+signal (?P<signal>\d+)"
)
_OPEN_MPI_CODE = re.compile(r"Process name:\s+\[[^\]]*,\s*(?P<rank>\d+)\]\s+Exit code:\s+(?P<code>\d+)")
_MPICH = re.compile(r"TERMINATED WITH THE EXIT STRING: .*\(signal (?P<signal>\d+)\)")
_CODE = re.compile(r"Exited with exit code (\d+)")
_OOM = re.compile(r"oom[-_ ]?kill|out of memory", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Death:
    """The first rank that ended before the others, as far as is known. `ranks`: it and those that ended at the same time, as
    srun writes it. `signal`: that killed it; `code`: it exited with.

    `out_of_memory`: killed because the host, or what the job may use of it, had no more. `node_failure`: its host is gone.
    """

    ranks: str = ""
    host: str | None = None
    signal: int | None = None
    code: int | None = None
    out_of_memory: bool = False
    node_failure: bool = False

    @property
    def rank(self) -> int | None:
        """None if it is not known which one it was."""
        return int(self.ranks) if self.ranks.isdecimal() else None

    def __str__(self) -> str:
        if self.node_failure:
            return f"host {self.host} has failed"
        who = (
            f"rank {self.ranks}" if self.rank is not None else f"one of ranks {self.ranks}" if self.ranks else "a rank"
        )
        where = f" on {self.host}" if self.host else ""
        if self.out_of_memory:
            return f"{who}{where} was killed because memory ran out"
        if self.signal is not None:
            return f"{who}{where} was killed by signal {self.signal} ({_name(self.signal)})"
        return f"{who}{where} exited with code {self.code}"


def first_death(text: str) -> Death | None:
    """None if nobody says that a rank died."""
    node = _SRUN_NODE.search(text)
    if node is not None:
        return Death(host=node["host"].rstrip(","), node_failure=True)
    out_of_memory = _OOM.search(text) is not None
    told = _SRUN.search(text)
    if told is not None:
        what = told["what"]
        code = _CODE.search(what)
        number = None if code else _number(what)
        return Death(told["ranks"], told["host"], number, int(code[1]) if code else None, out_of_memory)
    told = _OPEN_MPI.search(text)
    if told is not None:
        return Death(told["rank"], told["host"], int(told["signal"]), None, out_of_memory)
    told = _OPEN_MPI_CODE.search(text)
    if told is not None:
        return Death(told["rank"], code=int(told["code"]))
    told = _MPICH.search(text)
    if told is not None:
        return Death(signal=int(told["signal"]), out_of_memory=out_of_memory)
    return Death(out_of_memory=True, signal=int(Signals.SIGKILL)) if out_of_memory else None


def _number(description: str) -> int | None:
    """Of a signal by its description, as `Killed` or `Segmentation fault (core dumped)`."""
    words = description.partition(" (")[0]
    return next((int(number) for number in Signals if strsignal(number) == words), None)


def _name(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:
        return "of no known name"
