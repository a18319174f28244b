"""Where things lie in the state directory."""

import dataclasses
import os
import re
import shutil
import sys
from pathlib import Path

from vcluster.errors import UsageError
from vcluster.plan import NODES, REPOSITORY
from vcluster.processes import Supervised

# A Unix socket's path holds 107 bytes; the longest one here is munge's.
MAX_STATE_PATH = 107 - len("/run/munge.sock")
MARKER = "This directory belongs to slurm/devcluster, which wipes it (all but scratch/) at each fresh `up`.\n"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Paths below one state directory."""

    root: Path

    def __post_init__(self) -> None:
        # Slurm's configuration files know no quoting.
        if not re.fullmatch(r"[A-Za-z0-9_./+@-]+", str(self.root)):
            raise UsageError(
                f"state directory {self.root}: Slurm needs a path of letters, digits and _ . / + @ - only; "
                "choose another with --state"
            )
        if len(str(self.root)) > MAX_STATE_PATH:
            raise UsageError(
                f"state directory {self.root} is longer than {MAX_STATE_PATH} characters, too long for a Unix socket "
                "below it; choose another with --state"
            )

    @property
    def marker(self) -> Path:
        return self.root / "README"

    @property
    def command(self) -> Path:
        """The `devcluster` that looks after this cluster, for programs that know its state directory."""
        return self.root / "devcluster"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def etc(self) -> Path:
        return self.root / "etc"

    @property
    def slurm_conf(self) -> Path:
        return self.etc / "slurm.conf"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def munge_socket(self) -> Path:
        return self.run / "munge.sock"

    @property
    def database_socket(self) -> Path:
        return self.run / "mariadb.sock"

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def database(self) -> Path:
        return self.root / "database"

    @property
    def controller_state(self) -> Path:
        return self.root / "controller"

    @property
    def spool(self) -> Path:
        return self.root / "spool"

    @property
    def scratch(self) -> Path:
        """For run directories: seen by all nodes, kept by a fresh `up`."""
        return self.root / "scratch"

    def process(self, name: str) -> Supervised:
        """A daemon or a node, by name."""
        return Supervised(name, self.run, self.log)

    def claim(self) -> None:
        """Make the state directory ours, or refuse one that holds something else."""
        self.root.mkdir(parents=True, exist_ok=True)
        if not self.marker.exists():
            if any(self.root.iterdir()):
                raise UsageError(f"{self.root} is not empty and no devcluster made it; choose another with --state")
            self.marker.write_text(MARKER)

    def wipe(self) -> None:
        """Forget the last cluster. Controller state and node spools must go together: job ids start again at 1."""
        for directory in (self.etc, self.run, self.log, self.database, self.controller_state, self.spool):
            if directory.exists():
                shutil.rmtree(directory)
            directory.mkdir()
        (self.log / "detail").mkdir()
        for node in NODES:
            (self.spool / node).mkdir()
        self.scratch.mkdir(exist_ok=True)
        self.command.unlink(missing_ok=True)
        self.command.symlink_to(Path(sys.argv[0]).resolve())


def state_directory(option: str | None) -> Path:
    """The state directory: ``--state``, else LEMIX_DEVCLUSTER, else the one in the repository."""
    chosen = option or os.environ.get("LEMIX_DEVCLUSTER")
    return Path(chosen).resolve() if chosen else REPOSITORY / ".slurm-devcluster"
