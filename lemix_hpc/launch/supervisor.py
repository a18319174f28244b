"""Keeps a run going: starts its ranks, sees how each attempt ends, and does what follows.

One supervisor is beside the ranks of a run: on this machine in a session of its own, under Slurm in the batch step.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import load_recipe
from lemix_hpc.launch import slurm_job
from lemix_hpc.launch.endings import abandoned, fruitless, is_mistake, killed_by_slurm, settle
from lemix_hpc.launch.launcher import rank_command
from lemix_hpc.launch.launchers import make_launcher
from lemix_hpc.launch.log_stream import keep_on_writing
from lemix_hpc.launch.next_step import Next, Situation, decide
from lemix_hpc.launch.rundir import RunDir
from lemix_hpc.launch.scratch import scratch
from lemix_hpc.launch.successor import cancel_successor, submit_successor, take_over
from lemix_hpc.records.attempts import Attempt, AttemptEnd, attempts, claim, claim_next
from lemix_hpc.runtime.scheduler.allocation import ASK_EVERY_S, JobTime, ask_slurm

Where = Literal["local", "allocation", "job"]
"""What starts the ranks, and for how long: on this machine; in an allocation that is not ours; in the run's own Slurm job."""

LOOK_EVERY_S = 1.0
LAST_MOMENT_S = 2.0
PATIENCE_S = 6.0
"""How long the ranks may take once Slurm ends the job: sites kill what is left 10 s after that or later."""

LEFT_BEHIND_S = 30.0
"""How long a launcher may take whose ranks have seen that others go on with the run."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def supervise(run_dir: str) -> None:
    """What a Slurm job of a run does, in its batch step. Raises SystemExit if the run has failed."""
    keep_on_writing()
    code = Supervisor(RunDir(Path(run_dir)), "job").run()
    if code:
        sys.exit(code)


class Supervisor:
    """Of one run, in one allocation or on one machine."""

    def __init__(self, run: RunDir, where: Where) -> None:
        self._run = run
        self._where = where
        self._recipe = load_recipe(run.recipe)
        self._record = run.read_record()
        self._launcher = make_launcher(
            self._recipe, "local" if where == "local" else "allocation", rank_command(run.path)
        )
        self._job = slurm_job.job_id() if where == "job" else None
        self._ranks: subprocess.Popen[bytes] | None = None
        self._terminated_at = math.inf
        self._ask_at = -math.inf
        self._time = JobTime()

    def run(self) -> int:
        """Attempt after attempt. Returns the exit code: 0, or 1 if the run has failed."""
        self._hear_signals()
        self._note_what_nobody_saw()
        renewed = self._renew()
        code = self._attempts(renewed)
        if renewed and (code or self._over()) and (refused := cancel_successor(self._run)):
            self._say(f"the job that was to follow is still there: {refused}")
        return code

    def _attempts(self, renewed: bool) -> int:
        attempt: Attempt | None = None
        while self._may_go_on():
            attempt = claim(self._run.path) if attempt is None else claim_next(attempt)
            end = None if attempt is None else self._attempt(attempt)
            if attempt is None or end is None:
                self._say("the run goes on in another attempt, which this host was too cut off to hear of")
                return 0
            step, because = decide(self._situation(attempt, end, renewed))
            self._say(f"attempt {attempt.number} ended: {end.reason} ({end.message}); {step.value}: {because}")
            if step is Next.REQUEUE and self._may_go_on() and (refused := slurm_job.requeue(self._job or "")):
                self._say(
                    f"Slurm does not requeue the job: {refused}; `lemix resume {self._run.id}` goes on with the run"
                )
            if step is not Next.RESTART:
                if step is not Next.REQUEUE and not renewed and end.reason not in ("finished", "preempted"):
                    self._expire()
                return int(step is Next.GIVE_UP)
        return 0

    def _may_go_on(self) -> bool:
        """Whether nobody has ended the run here. First waits for Slurm's controller: without it no ranks start, and no job is
        requeued."""
        told = False
        while not self._run.stop.exists() and self._terminated_at == math.inf:
            if self._where == "local":
                return True
            if slurm_job.controller_answers():
                gone = self._job is not None and slurm_job.taken_away(self._job)
                if gone:
                    self._say("Slurm has taken the job from this host, and starts it again")
                return not gone
            if not told:
                self._say("Slurm's controller does not answer; the run waits for it")
                told = True
            time.sleep(LOOK_EVERY_S)
        return False

    def _expire(self) -> None:
        """Nobody goes on with the run: lines of a batch that were not answered get a record that says so."""
        if not (self._recipe.engine.serves_http and self._run.results.exists()):
            return
        from lemix_hpc.runtime.http.batch_results import expire
        from lemix_hpc.workload.load import load_workload

        requests = load_workload(self._recipe).requests.lengths()
        count = expire(self._run.path, (request.id for request in requests if request.call is not None))
        self._say(f"{count} lines of the batch have expired")

    def _attempt(self, attempt: Attempt) -> AttemptEnd | None:
        """Start all ranks, and wait until they have ended. None if a later attempt has begun meanwhile: Slurm took this host
        for dead, and has started the job elsewhere."""
        log_file = self._run.launcher_log(attempt.number)
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with log_file.open("ab+") as log:
            # Under Slurm the hosts are not only this one, and have an epilog for what jobs leave.
            with contextlib.ExitStack() as stack:
                variables = stack.enter_context(scratch()) if self._where == "local" else {}
                status = self._run_ranks(attempt, variables, log.fileno())
            log.seek(0)
            printed = log.read().decode(errors="replace")
        return None if attempt.superseded else settle(attempt, printed, status, self._killed(printed))

    def _killed(self, printed: str) -> AttemptEnd | None:
        """Why the run is ended from outside, if it is."""
        if self._run.cancelled.exists():
            return AttemptEnd("cancelled", "by `lemix cancel`", time.time())
        if self._out_of_time():
            return AttemptEnd("time-limit", "the ranks did not end in time", time.time())
        if self._terminated_at == math.inf:
            return None
        if self._job is None:
            return AttemptEnd("cancelled", "the supervisor was ended by a signal", time.time())
        return killed_by_slurm(printed)

    def _run_ranks(self, attempt: Attempt, variables: dict[str, str], log: int) -> int:
        launcher = self._launcher
        self._ranks = subprocess.Popen(
            [*launcher.command, str(attempt.number)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=launcher.environment | variables,
            # Signals for this process's group are not for mpiexec, which would take two of them for an emergency.
            start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509  there are no threads here
        )
        try:
            return self._wait_for(self._ranks, attempt)
        finally:
            self._ranks = None
            _end_orphans()

    def _renew(self) -> bool:
        """Whether another job goes on with the run after this one."""
        if self._job is None or not self._record.renew:
            return False
        take_over(self._run, self._job)
        try:
            successor = submit_successor(self._recipe, self._run, self._job)
        except UserError as error:
            self._say(f"no job can be submitted from here to go on with the run: {error}")
            return False
        self._say(f"job {successor} goes on with the run after this one")
        return True

    def _over(self) -> bool:
        """Whether there is nothing more to do, or nobody wants it to be done."""
        attempt = self._run.last_attempt
        end = attempt.ended if attempt is not None else None
        return self._run.stop.exists() or (end is not None and end.reason in ("finished", "drained", "cancelled"))

    def _wait_for(self, ranks: subprocess.Popen[bytes], attempt: Attempt) -> int:
        """Its exit status. When Slurm ends the job there is not the time to wait for it, and nothing to be had from that."""
        left_behind_at = math.inf
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return ranks.wait(LOOK_EVERY_S)
            killed = self._where == "job" and time.monotonic() >= self._terminated_at + PATIENCE_S
            if killed or self._out_of_time():
                return -signal.SIGTERM
            if attempt.superseded:
                left_behind_at = min(left_behind_at, time.monotonic())
                if time.monotonic() >= left_behind_at + LEFT_BEHIND_S:
                    # The ranks have ended by themselves, and it waits for a controller that it does not reach.
                    ranks.kill()

    def _out_of_time(self) -> bool:
        """Whether the job's time is as good as over, so that Slurm must be asked now to start it again, whatever the ranks do.
        They should have ended before."""
        if self._job is None:
            return False
        if time.monotonic() >= self._ask_at:
            self._ask_at = time.monotonic() + ASK_EVERY_S
            answer = ask_slurm(self._job)
            # An answer that does not come takes nothing back.
            self._time = answer if answer.state else self._time
        return time.time() >= self._time.end - LAST_MOMENT_S

    def _situation(self, attempt: Attempt, end: AttemptEnd, renewed: bool) -> Situation:
        return Situation(
            end,
            fruitless=fruitless(attempts(self._run.path), self._record.first_attempt),
            restarts=self._recipe.cluster.restarts,
            mistake=is_mistake(attempt),
            renewed=renewed,
            requeue=self._job is not None and self._recipe.cluster.requeue,
            stopped=self._run.stop.exists() or self._run.cancelled.exists(),
            ending=self._terminated_at < math.inf,
        )

    def _note_what_nobody_saw(self) -> None:
        """The attempts of a job that has died as a whole."""
        states = slurm_job.states_so_far(self._job) if self._job else []
        for attempt in attempts(self._run.path):
            if attempt.ended is None:
                attempt.end(abandoned(attempt, states))

    def _hear_signals(self) -> None:
        """TERM ends the ranks of a run on this machine. Under Slurm they have got it themselves, and end as they can."""
        signal.signal(signal.SIGTERM, self._end_ranks)
        for number in (signal.SIGINT, signal.SIGUSR2, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    def _end_ranks(self, *_: object) -> None:
        self._terminated_at = min(self._terminated_at, time.monotonic())
        ranks = self._ranks
        if self._where != "job" and ranks is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(ranks.pid, signal.SIGTERM)

    def _say(self, what: str) -> None:
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {what}", flush=True)


def _end_with_parent() -> None:
    """In the launcher, before it is one: the kernel ends it with its supervisor."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    for number in (signal.SIGINT, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def adopt_orphans() -> None:
    """Processes whose parents die below this one become its children, so that they can be ended with the attempt."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_orphans() -> None:
    """Kill and reap what an attempt has left of its processes on this host."""
    while children := list(_children()):
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _children() -> Iterator[int]:
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield from map(int, (task / "children").read_text().split())


def main() -> None:
    """`python -m lemix_hpc.launch.supervisor RUN_DIR WHERE`."""
    run_dir, where = sys.argv[1:]
    keep_on_writing()
    adopt_orphans()
    sys.exit(Supervisor(RunDir(Path(run_dir)), "allocation" if where == "allocation" else "local").run())


if __name__ == "__main__":
    main()
