"""Start long-lived processes, find them again in a later command, and end them: them and no others."""

import os
import select
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from vcluster.errors import DevclusterError

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Supervised:
    """A process by name; its identity (pid, start time, boot) is kept in ``<run>/<name>.pid``."""

    name: str
    run: Path
    log: Path

    @property
    def _pid_file(self) -> Path:
        return self.run / f"{self.name}.pid"

    @property
    def log_file(self) -> Path:
        return self.log / f"{self.name}.log"

    def start(self, command: list[str], environment: dict[str, str]) -> None:
        """Start in a session of its own, so that Ctrl-C in the terminal does not reach it."""
        with self.log_file.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=environment,
                start_new_session=True,
                umask=0o022,
            )
        self._pid_file.write_text(f"{process.pid} {_start_time(process.pid)} {BOOT_ID.read_text()}")

    def pid(self) -> int | None:
        """The process id while the process that was started is still alive, else None."""
        if not self._pid_file.exists():
            return None
        pid, started, boot = self._pid_file.read_text().split()
        if boot != BOOT_ID.read_text().strip() or _start_time(int(pid)) != started:
            return None
        return int(pid)

    def end(self, first_signal: signal.Signals, patience_s: float = 10.0) -> None:
        """Send ``first_signal``, then KILL to a process that outlives ``patience_s`` seconds."""
        for number in (first_signal, signal.SIGKILL):
            if self._end_with(number, patience_s):
                self._pid_file.unlink(missing_ok=True)
                return
        raise DevclusterError(f"{self.name} (pid {self.pid()}) survives even KILL; see {self.log_file}")

    def _end_with(self, number: signal.Signals, patience_s: float) -> bool:
        pid = self.pid()
        if pid is None:
            return True
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        try:
            # Checked again: the handle, not the number, is what the signal goes to.
            if self.pid() != pid:
                return True
            signal.pidfd_send_signal(handle, number)
            poller = select.poll()
            poller.register(handle, select.POLLIN)
            return bool(poller.poll(patience_s * 1000))
        except ProcessLookupError:
            return True
        finally:
            os.close(handle)

    def log_tail(self, lines: int = 15) -> str:
        if not self.log_file.exists():
            return ""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])


def children(pid: int) -> list[int]:
    """Of a process, none if there is no such process."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def name_of(pid: int) -> str | None:
    """The name of a process, None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _start_time(pid: int) -> str | None:
    """Start time of a live process in clock ticks since boot; None for a missing one or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name, in parentheses, may hold spaces; the state is the first field after it, the start the 20th.
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]
