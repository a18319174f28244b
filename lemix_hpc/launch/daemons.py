"""Slurm's daemons on a one-machine cluster of the user's own: kill them, and start them again as its machines would."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lemix_hpc.config.errors import UserError

CONTROLLER = "slurmctld"


@dataclass(frozen=True, slots=True)
class Daemons:
    """Of the cluster that `command` (slurm/devcluster) looks after. A daemon is `slurmctld`, or the name of a host for its
    slurmd."""

    command: Path

    def kill(self, daemon: str) -> None:
        """Raises UserError if it is not the user's."""
        self._call("kill", daemon)

    def restart(self, daemon: str) -> None:
        """Start it again, and wait until it serves. Raises UserError if that fails."""
        self._call("restart", daemon)

    def _call(self, verb: str, daemon: str) -> None:
        done = subprocess.run([self.command, verb, daemon], capture_output=True, text=True, check=False)
        if done.returncode:
            what = CONTROLLER if daemon == CONTROLLER else f"slurmd of {daemon}"
            raise UserError(f"{what}: not yours to {verb}: {done.stderr.strip()}")


def own_daemons() -> Daemons:
    """Of the cluster in this environment. Raises UserError unless it is a one-machine cluster."""
    state = os.environ.get("LEMIX_DEVCLUSTER")
    configuration = os.environ.get("SLURM_CONF")
    command = Path(state or "") / "devcluster"
    if state is None or configuration != str(Path(state) / "etc" / "slurm.conf") or not command.exists():
        asked = configuration or "the Slurm of this host"
        raise UserError(
            f"slurmd and controller: {asked} is no one-machine cluster of yours, and daemons of others are not killed; "
            "`slurm/devcluster/devcluster env` prints the environment of one (docs/devcluster.md)"
        )
    return Daemons(command)


def hosts_of(job: str) -> list[str]:
    """The hosts of a job, none if it does not run. Raises UserError if Slurm does not answer."""
    names = _answer("squeue", "--noheader", "--jobs", job, "--format", "%N").strip()
    return _answer("scontrol", "show", "hostnames", names).split() if names else []


def _answer(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout
