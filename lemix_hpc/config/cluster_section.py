"""The `cluster` section of a recipe: where a run goes, in Slurm's words."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationInfo, field_validator

from lemix_hpc.config.section import Section
from lemix_hpc.config.validation_messages import show
from lemix_hpc.config.walltime import parse_walltime

OF_OTHER_KEYS = {
    "nodes": "nodes.count and cluster.nodes_per_host",
    "ntasks": "nodes.count and nodes.stages",
    "ntasks-per-node": "nodes.stages and cluster.nodes_per_host",
    "job-name": "`name`",
    "requeue": "cluster.requeue: true",
    "no-requeue": "cluster.requeue: false",
    "signal": "policy.drain_reserve_s",
    "output": "LEMIX_RUNS or --out: the output is in the run's directory",
    "error": "LEMIX_RUNS or --out: the output is in the run's directory",
    "open-mode": "nothing: the output of all attempts is kept",
    "array": "another seed for each run: a run is one job",
    "wrap": "cluster.setup",
    "test-only": "--dry-run",
    "parsable": "--json",
    "wait": "`lemix run` instead of `lemix submit`",
} | {
    name.replace("_", "-"): f"cluster.{name}"
    for name in (
        "partition",
        "account",
        "qos",
        "time",
        "gres",
        "gpus_per_node",
        "cpus_per_task",
        "mem",
        "constraint",
        "nodelist",
        "exclude",
        "reservation",
    )
}
"""Options of sbatch that `cluster.sbatch` must not give, and what gives them."""


class Cluster(Section):
    """Where the run goes. Everything but `kind` and `nodes_per_host` speaks to Slurm in Slurm's own words."""

    kind: Literal["auto", "slurm", "local", "allocation"] = Field(
        default="auto",
        description=(
            "`slurm` (a new job), `local` (this machine), `allocation` (the Slurm allocation that the command "
            "runs in), or `auto`: `slurm` if it answers, else `local`. `--cluster` overrides it."
        ),
    )
    partition: str | None = Field(default=None, description="As `sbatch --partition`.")
    account: str | None = Field(default=None, description="As `sbatch --account`.")
    qos: str | None = Field(default=None, description="As `sbatch --qos`.")
    time: str = Field(
        default="01:00:00",
        description=(
            'Time limit in Slurm\'s spellings: `H:M:S`, `D-H:M:S`, or minutes in quotes (`"90"`). Rounded up to '
            "minutes."
        ),
    )
    gres: str | None = Field(default=None, description="As `sbatch --gres`, such as `gpu:a100:4`.")
    gpus_per_node: PositiveInt | None = Field(
        default=None, description="As `sbatch --gpus-per-node`; one for each stage on the host."
    )
    cpus_per_task: PositiveInt | None = Field(
        default=None,
        description=(
            "Cores for each rank; by default 1, with `engine.kind: vllm` 4: its leader runs three busy threads "
            "and vLLM's process."
        ),
    )
    mem: str | None = Field(default=None, description="As `sbatch --mem`, such as `64G`.")
    constraint: str | None = Field(default=None, description="As `sbatch --constraint`.")
    nodelist: str | None = Field(default=None, description="As `sbatch --nodelist`.")
    exclude: str | None = Field(default=None, description="As `sbatch --exclude`: hosts to avoid.")
    reservation: str | None = Field(default=None, description="As `sbatch --reservation`.")
    nodes_per_host: PositiveInt = Field(
        default=1, description="Model replicas on each host. `nodes.count` must be a multiple of it."
    )
    container: list[str] = Field(
        default=[],
        description=(
            "A command, as a list, that runs another command inside the container. It is put before Python in the job."
        ),
    )
    setup: list[str] = Field(
        default=[],
        description=(
            "Shell lines that the job runs before `srun`, such as `module load openmpi`. No `#SBATCH` lines: they "
            "would do nothing there."
        ),
    )
    srun_args: list[str] = Field(default=[], description="More arguments for `srun`.")
    sbatch: dict[str, str | int | float | bool] = Field(
        default={},
        description=(
            "More options of `sbatch` by their long names, such as `{mem-per-cpu: 2G, mail-user: me@site, "
            "exclusive: true}`. `true` gives an option without a value, `false` leaves it out. Not those that "
            "other keys decide."
        ),
    )
    mpi: str = Field(
        default="pmix", description="The plugin for `srun --mpi`; `lemix doctor` shows whether the site offers it."
    )
    requeue: bool = Field(
        default=True,
        description="Slurm may start the job again: after a preemption, when a host has failed, and at the time limit.",
    )
    restarts: NonNegativeInt = Field(
        default=3,
        description=(
            "Attempts in a row without progress that are borne before a run is given up; with 0 it is not started "
            "again after a crash. Also for local runs."
        ),
    )

    @field_validator("*")
    @classmethod
    def _on_one_line(cls, value: Any, info: ValidationInfo) -> Any:
        if info.field_name == "setup":
            return value
        texts = value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
        if any(isinstance(text, str) and any(ord(char) < ord(" ") for char in text) for text in texts):
            raise ValueError(
                "has a line break or another control character, and stands on one line of the job's script"
            )
        return value

    @field_validator("setup")
    @classmethod
    def _setup_has_no_options(cls, value: list[str]) -> list[str]:
        for line in "\n".join(value).splitlines():
            if re.match(r"\s*#SBATCH\b", line):
                raise ValueError(
                    f"{line.strip()!r} would do nothing: Slurm reads no options behind the first command of a script; give "
                    "it in cluster.sbatch, such as {mem-per-cpu: 2G}"
                )
        return value

    @field_validator("sbatch", mode="before")
    @classmethod
    def _sbatch_has_values(cls, value: Any) -> Any:
        # One sentence instead of pydantic's one for each member of the union.
        for name, given in value.items() if isinstance(value, dict) else ():
            if not isinstance(given, (str, int, float)):
                raise ValueError(
                    f"{name}: expected text, a number, or true for an option without a value; found {show(given)}"
                )
        return value

    @field_validator("sbatch")
    @classmethod
    def _sbatch_has_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not re.fullmatch(r"[a-z][a-z0-9-]+", name):
                raise ValueError(f"{name!r} is no option of sbatch; write its long name, such as mail-user")
            if name in OF_OTHER_KEYS:
                raise ValueError(f"{name} is decided elsewhere; give {OF_OTHER_KEYS[name]}")
        return value

    @field_validator("time")
    @classmethod
    def _time_is_slurm_time(cls, value: str) -> str:
        parse_walltime(value)
        return value
