"""One check in a process of its own: `python -m benchmarks.gpu_check.child NAME DEVICE REPORT`.

It imports what it needs, says so, and waits for a line before it touches the device: so imports of the next check overlap with
the check before.
"""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from pathlib import Path

from benchmarks.gpu_check.checks import CHECKS
from benchmarks.gpu_check.report import Report, SkippedError


def main() -> None:
    name, device, path = sys.argv[1:]
    report = Report(Path(path))
    module = next(check.module for check in CHECKS if check.name == name)
    try:
        began = time.monotonic()
        check = importlib.import_module(f"benchmarks.gpu_check.{module}").check
        imports_s = time.monotonic() - began
        sys.stdin.readline()
        report.figure("imports_s", imports_s)
        check(device, report)
    except SkippedError as skipped:
        report.write("skipped", reason=str(skipped))
    except BaseException as error:  # noqa: BLE001  whatever it is, it is the result
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
        report.write("crashed", reason=reason[:500], traceback=traceback.format_exc()[-12000:])
    else:
        report.write("failed" if report.faults else "passed")


if __name__ == "__main__":
    main()
