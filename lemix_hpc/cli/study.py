"""`lemix study`: a recipe with several sets of changes, simulated side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lemix_hpc.cli import options
from lemix_hpc.cli.compare import check_lines, run_all, show_grid
from lemix_hpc.cli.report import Html, Png
from lemix_hpc.cli.run import Overrides


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
) -> None:
    """Simulate the variants of a study under its loads, and print means over the seeds with ratios to its baseline. Rates,
    shares and seeds that are given go before the study's."""
    from lemix_hpc.config.study import read_study
    from lemix_hpc.studies.study import grid_of

    content = read_study(file)
    given = {
        "rates": options.rates(rates) if rates else None,
        "training_shares": options.shares(training_shares) if training_shares else None,
        "seeds": options.seeds(seeds) if seeds else None,
    }
    content = content.model_copy(update={key: value for key, value in given.items() if value is not None})
    if png is not None:
        check_lines(content.rates, content.training_shares)
    done = run_all(grid_of(content, file, overrides or []), options.processes(jobs))
    baseline = content.baseline or next(iter(content.variants))
    show_grid(file.stem, done, baseline, csv=csv, json=json, html=html, png=png)
