"""The Slurm job that a command may be in, as far as its environment tells: nothing of it is for the processes of a run."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_OF_A_JOB = re.compile(r"SLURM_|SBATCH_|PMI_|PMIX_(?!MCA_)|SRUN_")
_OF_THE_SITE = frozenset({"SLURM_CONF"})
"""Says where Slurm is, in a job or not."""


def leaked(environment: Mapping[str, str] | None = None) -> list[str]:
    """The variables that an outer job has set, or was submitted with; none outside of jobs, where they are the user's own."""
    known = os.environ if environment is None else environment
    if "SLURM_JOB_ID" not in known:
        return []
    return [name for name in known if _OF_A_JOB.match(name) and name not in _OF_THE_SITE]


def without_outer_job() -> dict[str, str]:
    """The environment outside of it."""
    gone = set(leaked())
    return {name: value for name, value in os.environ.items() if name not in gone}
