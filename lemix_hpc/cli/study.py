"""`lemix study`: a recipe with several sets of changes side by side, simulated or run."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lemix_hpc.cli import options
from lemix_hpc.cli.compare import check_lines, show_all, show_grid
from lemix_hpc.cli.report import Html, Png
from lemix_hpc.cli.run import Cluster, ClusterChoice, Overrides

if TYPE_CHECKING:
    from lemix_hpc.config.study import Study
    from lemix_hpc.studies.study import StudyGrid
    from lemix_hpc.studies.sweep import Done


class On(enum.StrEnum):
    simulator = "simulator"
    emulated = "emulated"
    devices = "devices"


def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY", help="The study, a YAML file.", show_default=False)],
    overrides: Overrides = None,
    rates: options.Rates = None,
    training_shares: options.TrainingShares = None,
    seeds: options.Seeds = None,
    csv: options.Csv = None,
    json: options.Json = None,
    html: Html = None,
    png: Png = None,
    jobs: options.Jobs = None,
    on: Annotated[
        On | None,
        typer.Option(
            help="What runs the study: simulated time, MPI ranks whose stages sleep, or devices. By default what it says."
        ),
    ] = None,
    cluster: Cluster = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where the runs go, and are found again, unless simulated. By default below ./runs."
        ),
    ] = None,
) -> None:
    """Run the variants of a study under its loads, and print means over the seeds with ratios to its baseline. Rates, shares,
    seeds and what it runs on go before the study's. The same command again goes on where it was cut off."""
    from lemix_hpc.config.study import read_study
    from lemix_hpc.studies.study import grid_of

    content = read_study(file).as_run(None if on is None else on.value)
    given: dict[str, object] = {
        "rates": options.rates(rates) if rates else None,
        "training_shares": options.shares(training_shares) if training_shares else None,
        "seeds": options.seeds(seeds) if seeds else None,
    }
    content = content.model_copy(update={key: value for key, value in given.items() if value is not None})
    if png is not None:
        check_lines(content.rates, content.training_shares)
    grid = grid_of(content, file, overrides or [], cluster)
    what, answers = _answers(content, grid, cluster, out or _default_out(file, content), options.processes(jobs))
    done = show_all(answers, len(grid.cells()), what)
    baseline = content.baseline or next(iter(content.variants))
    show_grid(file.stem, done, baseline, csv=csv, json=json, html=html, png=png)


def _default_out(file: Path, study: Study) -> Path:
    from lemix_hpc.launch.place import runs_root

    return runs_root() / f"{file.stem}-{study.on}"


def _answers(
    study: Study, grid: StudyGrid, cluster: ClusterChoice | None, out: Path, jobs: int
) -> tuple[str, Iterator[Done]]:
    """The runs, one by one, and what is done meanwhile."""
    if study.on == "simulator":
        from lemix_hpc.studies.sweep import run_grid

        return "simulating", run_grid(grid, jobs=jobs)
    from lemix_hpc.cli.interrupts import Interrupts
    from lemix_hpc.launch.start import choose_cluster
    from lemix_hpc.studies.real_runs import run_for_real

    kind = choose_cluster(cluster or next(iter(grid.variants.values())).cluster.kind)
    typer.echo(f"The runs are in {out}", err=True)
    Interrupts().release()  # whatever ends the study is to reach its runs
    return "running", run_for_real(grid, kind, out.absolute())
