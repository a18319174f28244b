"""`lemix trace`: the records of a run as a trace."""

import gzip
import json
from pathlib import Path

from lemix_hpc.launch.rundir import RunDir, RunRecord
from tests.cli.conftest import Command
from tests.records.conftest import example_run, write_run

__all__ = ["example_run", "write_run"]
RECORD = RunRecord("example", "simulated", 0.0, ["lemix"], "host", "user", "0", 0)


def test_a_run_has_its_trace_beside_it_or_where_one_says(inside: Command, example_run: Path) -> None:
    RunDir(example_run).write_record(RECORD)
    done = inside("trace", example_run)
    assert done.returncode == 0
    assert f"{example_run / 'trace.json.gz'}; open it in https://ui.perfetto.dev" in done.stderr
    assert inside("trace", example_run, "--out", "mine.json").returncode == 0
    trace = json.loads(gzip.decompress((example_run / "trace.json.gz").read_bytes()))
    assert trace == json.loads((example_run / "mine.json").read_bytes())
    assert trace["otherData"]["run"] == example_run.name


def test_a_run_without_records_and_no_run(inside: Command, tmp_path: Path) -> None:
    RunDir(tmp_path).write_record(RECORD)
    done = inside("trace", tmp_path)
    assert done.returncode == 2 and "facts.json is missing" in done.stderr
    done = inside("trace", "no-run")
    assert done.returncode == 2 and "no run has this id" in done.stderr


def test_a_file_that_cannot_be_written(inside: Command, example_run: Path) -> None:
    RunDir(example_run).write_record(RECORD)
    done = inside("trace", example_run, "--out", "nowhere/trace.json")
    assert done.returncode == 2
    assert done.stderr == "nowhere/trace.json: cannot be written: No such file or directory\n"
