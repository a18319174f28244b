"""Runs inside an allocation that is there already, from salloc or a batch script of the user's own: one srun."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.launch.launcher import Launcher
from lemix_hpc.launch.local import root_environment


def launcher(recipe: Recipe, rank: Sequence[str]) -> Launcher:
    """srun in the allocation at hand. Raises UserError outside of one, and in one that is too small."""
    if "SLURM_JOB_ID" not in os.environ or shutil.which("srun") is None:
        raise UserError(
            "--cluster allocation: there is no Slurm allocation here; start one with salloc, put the command into a batch "
            "script, or let `--cluster slurm` submit a job"
        )
    cluster, nodes = recipe.cluster, recipe.nodes
    hosts = nodes.count // cluster.nodes_per_host
    granted = int(os.environ.get("SLURM_JOB_NUM_NODES", hosts))
    if granted < hosts:
        raise UserError(
            f"the recipe needs {hosts} hosts (nodes.count / cluster.nodes_per_host), this allocation has {granted}"
        )
    per_host = cluster.nodes_per_host * (nodes.stages + 1)
    command = [
        "srun",
        f"--nodes={hosts}",
        f"--ntasks={hosts * per_host}",
        f"--ntasks-per-node={per_host}",
        f"--cpus-per-task={recipe.cores}",
        *mpi_options(recipe),
        *cluster.container,
        *rank,
    ]
    return Launcher(command, dict(os.environ) | root_environment())


def mpi_options(recipe: Recipe) -> list[str]:
    """What every srun of a run is told: block distribution keeps the ranks of a node together on its host."""
    cluster = recipe.cluster
    return [f"--mpi={cluster.mpi}", "--kill-on-bad-exit=1", "--distribution=block", *cluster.srun_args]
