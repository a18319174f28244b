"""The small run on the CPU: for the one on the device to be compared with. It also compiles the policy for it."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.gpu_check.report import Report
from benchmarks.gpu_check.small_run import finish, losses, recipe, start


def check(_device: str, report: Report) -> None:
    out = Path(os.environ["GPU_CHECK_OUT"]) / "runs"
    finish(start(recipe("cpu", "float32"), out), out / "cpu-float32")
    found = losses(out / "cpu-float32")
    report.figure("losses_first_last", [found[0], found[-1]])
    report.expect(found[-1] < found[0] - 0.5, "training on the CPU does not learn")
