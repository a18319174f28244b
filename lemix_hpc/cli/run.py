"""`lemix run` and `lemix submit`."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lemix_hpc.config.recipe import Recipe
    from lemix_hpc.launch.start import ClusterKind, StartedRun


class ClusterChoice(enum.StrEnum):
    auto = "auto"
    slurm = "slurm"
    local = "local"
    allocation = "allocation"


RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a key of the recipe, such as nodes.count=4. May be repeated."
    ),
]
Cluster = Annotated[
    ClusterChoice | None,
    typer.Option(
        help="Where to run. By default what the recipe says. `auto`: a Slurm job if Slurm answers, else this machine. "
        "`allocation`: the Slurm allocation that this command runs in."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="The run directory; must be empty or not exist. By default a new one below ./runs."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything and show what would be started. Starts nothing.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Renew = Annotated[
    bool,
    typer.Option(
        "--renew",
        help="Let each job submit one that goes on with the run after it, until all is done or the run is stopped.",
    ),
]


def run_names(begin: str) -> list[str]:
    """For the shell: ids of runs, the newest first."""
    from lemix_hpc.launch.registry import known_runs

    return [name for name in ("last", *(run.id for run in reversed(known_runs()))) if name.startswith(begin)]


RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        autocompletion=run_names,
        help="Id of the run or the start of one, its directory or Slurm job, its recipe's name for the newest, or `last`.",
        show_default=False,
    ),
]


def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    cluster: Cluster = None,
    out: Out = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Start a run, show its progress, and print its report. Exit code 1 if it fails."""
    ready, kind = _prepare(recipe, overrides, cluster, out)
    if dry_run:
        _show_dry_run(ready, kind, out)
        return
    from lemix_hpc.cli.follow import follow
    from lemix_hpc.launch.start import start

    raise typer.Exit(follow(lambda: start(ready, kind, out), as_json=as_json))


def submit(
    recipe: RecipePath,
    overrides: Overrides = None,
    cluster: Cluster = None,
    out: Out = None,
    renew: Renew = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Start a run and return at once. Follow it with `lemix watch`, `lemix logs` and `lemix report`."""
    ready, kind = _prepare(recipe, overrides, cluster, out)
    if dry_run:
        _show_dry_run(ready, kind, out)
        return
    from lemix_hpc.launch.start import start

    if renew and kind != "slurm":
        from lemix_hpc.config.errors import UserError

        raise UserError(f"--renew: only Slurm jobs have a limit that makes it necessary, and this run is {kind}")
    _tell(start(ready, kind, out, renew=renew), as_json=as_json)


def resume(
    name: RunName,
    cluster: Cluster = None,
    renew: Renew = False,
    as_json: Json = False,
) -> None:
    """Go on with a run that ended before its work was done, and return at once."""
    from lemix_hpc.config.errors import UserError
    from lemix_hpc.config.load import read_recipe
    from lemix_hpc.launch.preflight import preflight
    from lemix_hpc.launch.registry import find_run
    from lemix_hpc.launch.start import choose_cluster, resumable
    from lemix_hpc.launch.start import resume as start_again
    from lemix_hpc.records.made_by import made_by

    run = find_run(name)
    record = resumable(run)
    kind = choose_cluster(cluster or record.cluster)
    try:
        loaded = read_recipe(run.recipe, [])
    except UserError as error:
        raise UserError(f"{error}{made_by(run.recipe)}") from error
    for notice in preflight(loaded, kind, run.path):
        typer.echo(notice, err=True)
    _tell(start_again(run, loaded.recipe, kind, renew=renew), as_json=as_json)


def _tell(started: StartedRun, *, as_json: bool) -> None:
    """What has been started, and how to find it."""
    record = started.record
    if as_json:
        facts = {
            "id": record.id,
            "cluster": record.cluster,
            "job": record.job,
            "pid": record.pid,
            "directory": str(started.run.path),
        }
        typer.echo(json.dumps(facts))
    else:
        what = f"job {record.job}" if record.job is not None else f"process {record.pid}"
        typer.echo(f"Started {record.id} as {what}; its directory is {started.run.path}")
    if record.cluster == "slurm" and record.job is not None and (told := _stuck(record.job)):
        typer.echo(told, err=True)


def _stuck(job: str) -> str | None:
    """What Slurm says at once of a job that it would only start once something has changed."""
    from lemix_hpc.launch.job_queue import look_up
    from lemix_hpc.launch.queue_reasons import ORDINARY, why

    found = look_up(job)
    if found is None or found.reason is None or found.reason in ORDINARY:
        return None
    meaning = why(found.reason)
    return f"It waits, {found.reason}{'' if meaning is None else f': {meaning}'}"


def _prepare(
    path: Path, overrides: list[str] | None, cluster: ClusterChoice | None, out: Path | None
) -> tuple[Recipe, ClusterKind]:
    from lemix_hpc.config.load import read_recipe
    from lemix_hpc.launch.place import runs_root
    from lemix_hpc.launch.preflight import preflight
    from lemix_hpc.launch.room import shortage
    from lemix_hpc.launch.start import choose_cluster
    from lemix_hpc.launch.visibility import unseen

    loaded = read_recipe(path, overrides or [])
    kind = choose_cluster(cluster or loaded.recipe.cluster.kind)
    for notice in preflight(loaded, kind):
        typer.echo(notice, err=True)
    if kind == "slurm" and (warning := unseen(loaded.recipe, out or runs_root())):
        typer.echo(warning, err=True)
    if warning := shortage(loaded.recipe, (out or runs_root()).absolute()):
        typer.echo(warning, err=True)
    return loaded.recipe, kind


def _show_dry_run(recipe: Recipe, kind: ClusterKind, out: Path | None) -> None:
    from lemix_hpc.config.load import chosen_yaml
    from lemix_hpc.launch.place import check_place, runs_root

    check_place(recipe.name, out, for_slurm=kind == "slurm")
    run_dir = (out or runs_root() / f"{recipe.name}-DATE").absolute()
    typer.echo(f"# recipe.yaml, without the defaults that are added to it\n{chosen_yaml(recipe)}")
    if recipe.engine.computes:
        from lemix_hpc.cli.plan import print_stages

        print_stages(recipe)
    if kind == "slurm":
        _show_job_script(recipe, run_dir)
    else:
        import shlex

        from lemix_hpc.launch.launcher import rank_command
        from lemix_hpc.launch.launchers import make_launcher

        typer.echo(f"# command\n{shlex.join(make_launcher(recipe, kind, rank_command(run_dir)).command)}")


def _show_job_script(recipe: Recipe, run_dir: Path) -> None:
    from lemix_hpc.launch import slurm
    from lemix_hpc.launch.start import slurm_answers

    text = slurm.script(recipe, run_dir / "submitit")
    typer.echo(f"# job.sbatch\n{text}")
    if not slurm_answers():
        typer.echo("Slurm does not answer here, so it has not checked the script.", err=True)
        return
    answer = slurm.test_only(text)
    typer.echo(answer.message, err=True)
    if not answer.accepted:
        raise typer.Exit(2)
