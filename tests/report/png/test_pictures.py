"""The figures of a report as pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.html_report import write_records
from lemix_hpc.records.reader import stream_run
from lemix_hpc.report.aggregates.gather import gather
from lemix_hpc.report.aggregates.schema import RunAggregates
from lemix_hpc.report.aggregates.views import WORK_COLORS
from lemix_hpc.report.png.write import write_pictures

OF_ALL_RUNS = ["stage-time", "latencies", "over-time", "waits", "forecasts", "training", "memory", "placement"]


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> RunAggregates:
    """A run with something in every figure, and more work than is shown piece by piece."""
    run = tmp_path_factory.mktemp("run")
    write_records(run, 4000, nodes=2)
    return gather(stream_run(run))


def test_each_figure_is_a_picture(made_up: RunAggregates, tmp_path: Path) -> None:
    written = write_pictures({"run": made_up}, tmp_path / "pictures")
    assert [path.stem for path in written] == ["stages", *OF_ALL_RUNS]
    for path in written:
        assert Image.open(path).width == 1440
    colors = {color for _, color in Image.open(written[0]).convert("RGB").getcolors(1 << 24) or []}
    for kind in ("prefill", "decode", "forward", "backward"):
        assert tuple(bytes.fromhex(WORK_COLORS[kind][1:])) in colors, f"{kind} is seen"


def test_of_several_runs_each_has_its_stages(
    made_up: RunAggregates, example_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    runs = {"run": made_up, "/runs/a b": gather(stream_run(example_run))}
    written = write_pictures(runs, tmp_path_factory.mktemp("pictures"))
    assert [path.stem for path in written] == ["stages-0-run", "stages-1-_runs_a_b", *OF_ALL_RUNS]


def test_a_run_without_anything_has_no_pictures(empty_run: Path, tmp_path: Path) -> None:
    assert write_pictures({"run": gather(stream_run(empty_run))}, tmp_path / "pictures") == []
