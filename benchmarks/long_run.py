"""What a run that has answered very many requests keeps in its journal, and what it takes to go on from it and to report it.

    python benchmarks/long_run.py [--requests 1000000] [--output 20] [--directory DIR] [--json]

The files of an attempt are written as its scheduler writes them: each request is accepted, placed, worked on by two stages
and ended. Then, each in a process of its own: what the next attempt goes on from is found, if clients have sent the requests,
or if they are of a trace; the report is made; a task is looked for, as by `lemix explain`; and the load is read, as by
`lemix replay`. Counted are the journal's bytes for 1,000 requests, the seconds of processor time of each of these, and the most
memory that its process had besides what it had when its modules were imported.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from lemix_hpc.config.serving_section import GeneratedSource, Serving
from lemix_hpc.records.attempts import AttemptStart, claim
from lemix_hpc.records.inheritance import inherit
from lemix_hpc.records.journal import Accepted, Placed, journal_part, journal_parts
from lemix_hpc.records.journal_writer import Journal
from lemix_hpc.records.reader import stream_run
from lemix_hpc.records.schema import RunFacts, ServedTask, Stretch
from lemix_hpc.records.writer import Recorder
from lemix_hpc.report.build import summarise
from lemix_hpc.runtime.scheduler.resume import arrivals_of
from lemix_hpc.studies.explain_placement import find_task
from lemix_hpc.studies.replay import requests_of
from lemix_hpc.workload.requests import load_requests

RATE, PASS_S = 100.0, 0.005
FACTS = RunFacts("round-robin", "emulated", 1, 2, [1.5], 0.1, 0.0, 0)
WAITING = 20_000
"""Records of the journal, after which the generator waits for the disk."""


def write(run_dir: Path, requests: int, output: int) -> int:
    """The files of an attempt that was killed. Returns the bytes of its journal."""
    attempt = claim(run_dir)
    attempt.start(AttemptStart(time=0.0, host="h"))
    recorder = Recorder(attempt.path)
    journal = recorder.journal = Journal(attempt.path, settle=recorder.settle, saved=lambda: None)
    for number in range(requests):
        arrival = number / RATE
        recorder.promise(Accepted(number, f"r{number}", arrival, 300, place=number))
        recorder.promise(Placed(number, 0))
        for stage in (0, 1):
            start = arrival + stage * PASS_S
            recorder.work(Stretch(0, stage, "serve", start, start + PASS_S, 0, number, f"r{number}"))
        recorder.request(answered(number, arrival, output), number)
        if journal.waiting > WAITING:
            journal.flush()
    recorder.facts(msgspec.structs.replace(FACTS, duration_s=requests / RATE))
    recorder.close()
    journal.close()
    return sum(journal_part(attempt.path, part).stat().st_size for part in journal_parts(attempt.path))


def answered(number: int, arrival: float, output: int) -> ServedTask:
    end = arrival + 2 * PASS_S
    tokens = [1000 + (number + place) % 30_000 for place in range(output)]
    return ServedTask(
        f"r{number}", "finished", arrival, 300, 0, arrival, end, end, output=tokens, versions=(0, 0), number=number
    )


def of_clients(run_dir: Path, requests: int) -> None:
    inherited = inherit(run_dir, None)
    assert inherited.tally.total + len(inherited.served) == requests


def of_a_trace(run_dir: Path, requests: int) -> None:
    source = GeneratedSource(kind="constant", rate=RATE, requests=requests + 1)
    stream = load_requests(Serving(source=source), seed=0, tokenizer=None).requests
    assert [request.place for request in arrivals_of(stream, inherit(run_dir, None)).until(math.inf)] == [requests]


def report(run_dir: Path, requests: int) -> None:
    assert summarise(stream_run(run_dir))["serving"]["finished"] == requests


def explain(run_dir: Path, requests: int) -> None:
    assert find_task(stream_run(run_dir).tasks(), f"r{requests - 1}").number == requests - 1


def replay(run_dir: Path, requests: int) -> None:
    assert len(requests_of(run_dir, stream_run(run_dir))[0]) == requests


READS: dict[str, Callable[[Path, int], None]] = {
    "resume, requests of clients": of_clients,
    "resume, requests of a trace": of_a_trace,
    "report": report,
    "explain: find the task": explain,
    "replay: read the load": replay,
}


def read(what: str, run_dir: Path, requests: int) -> None:
    """Print seconds of processor time and MB of memory of this process."""
    before, start = _peak_mb(), time.process_time()
    READS[what](run_dir, requests)
    print(json.dumps({"seconds": time.process_time() - start, "mb": _peak_mb() - before}))


def _peak_mb() -> float:
    """Of this program alone: `getrusage` also counts what the process was before."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--output", type=int, default=20, help="tokens of each answer")
    parser.add_argument("--directory", type=Path, help="where the files are made, and removed again")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--read", choices=READS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read is not None:
        read(args.read, args.directory, args.requests)
        return
    with tempfile.TemporaryDirectory(dir=args.directory) as name:
        journal = write(Path(name), args.requests, args.output)
        again = [sys.executable, __file__, "--requests", str(args.requests), "--directory", name, "--read"]
        costs = {
            what: json.loads(subprocess.run([*again, what], check=True, capture_output=True, text=True).stdout)
            for what in READS
        }
    per_1000 = journal / args.requests * 1000
    if args.json:
        print(json.dumps({"journal_bytes": journal, "journal_bytes_per_1000": per_1000, "reads": costs}))
        return
    print(f"journal: {journal / 1e6:.1f} MB, {per_1000 / 1e3:.1f} kB for 1,000 requests")
    for what, cost in costs.items():
        print(f"{what:<28} {cost['seconds']:7.1f} s {cost['mb']:8.0f} MB")


if __name__ == "__main__":
    main()
