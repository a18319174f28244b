"""The project's own tests that need a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_check.report import Report, SkippedError
from benchmarks.gpu_check.shapes import on_gpu

REPOSITORY = Path(__file__).resolve().parents[2]


def check(device: str, report: Report) -> None:
    if not on_gpu(device):
        raise SkippedError("all of them would be skipped")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "cuda",
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=short",
        "tests/engines",
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    report.figure("summary", (done.stdout.strip().splitlines() or ["nothing"])[-1])
    failed = [text for text in done.stdout.splitlines() if text.startswith(("FAILED", "ERROR"))]
    report.figure("failed", failed)
    report.expect(done.returncode == 0, f"pytest ended with {done.returncode}, {len(failed)} failed")
