"""Check this product on a GPU in a few minutes: is it right, and how fast.

    python -m benchmarks.gpu_check                           # or: make gpu-check
    python -m benchmarks.gpu_check --device cpu              # the same with tiny models, as far as it goes without a GPU
    python -m benchmarks.gpu_check --only environment,tests --out DIR

Each check has a process of its own and a time limit; DIR/gpu-check.json grows as they end. Exit code 1 unless all passed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.checks import CHECKS, Check

AHEAD = 4
"""So many checks import what they need while another one runs."""
OUTPUT = 8000
"""Characters that are kept of the end of what a check printed."""


class Running:
    """A check's process."""

    def __init__(self, check: Check, device: str, folder: Path, until: float) -> None:
        self.check = check
        self._until = until
        self._report = folder / f".{check.name}.json"
        self._log = folder / f".{check.name}.log"
        self._report.unlink(missing_ok=True)
        self._began: float | None = None
        command = [sys.executable, "-m", "benchmarks.gpu_check.child", check.name, device, str(self._report)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def go(self) -> None:
        self._began = time.monotonic()
        self._until = min(self._until, self._began + self.check.limit_s)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"\n")
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # its report says why

    @property
    def over(self) -> bool:
        """Whether it has ended; one that takes too long is killed."""
        assert self._began is not None
        if self._process.poll() is None and time.monotonic() > self._until:
            self.kill()
            self._report_end("timeout", f"not done after {time.monotonic() - self._began:.0f} s")
        return self._process.poll() is not None

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def result(self) -> dict[str, Any]:
        if self._read().get("verdict") in (None, "running"):
            self._report_end("crashed", f"ended with code {self._process.returncode}")
        took = 0.0 if self._began is None else time.monotonic() - self._began
        result = {"name": self.check.name, "seconds": round(took, 1)} | self._read()
        if result["verdict"] not in ("passed", "skipped"):
            result["output"] = self._log.read_text(encoding="utf-8", errors="replace")[-OUTPUT:]
        self._report.unlink(missing_ok=True)
        self._log.unlink(missing_ok=True)
        return result

    def _read(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self._report.read_text()) if self._report.exists() else {}
        return content

    def _report_end(self, verdict: str, reason: str) -> None:
        found = {"figures": {}, "faults": []} | self._read()
        self._report.write_text(json.dumps(found | {"verdict": verdict, "reason": reason}), encoding="utf-8")


def run(checks: list[Check], device: str, folder: Path, ahead: int, limit_s: float) -> list[dict[str, Any]]:
    """Run the checks, one at a time on the device. Results in the order in which they came; checks for which no time was left
    are not among them."""
    waiting, until = list(checks), time.monotonic() + limit_s
    started: dict[str, Running] = {}
    beside: list[Running] = []
    results: list[dict[str, Any]] = []
    environment = {"device": device, "started": time.strftime("%Y-%m-%d %H:%M:%S"), "command": sys.argv}

    def note(running: Running) -> None:
        results.append(running.result())
        print(line(results[-1]), flush=True)
        (folder / "gpu-check.json").write_text(
            json.dumps(environment | {"checks": results}, indent=1), encoding="utf-8"
        )

    def reap() -> None:
        for running in [each for each in beside if each.over]:
            beside.remove(running)
            note(running)

    try:
        for check in [check for check in waiting if check.beside]:
            waiting.remove(check)
            beside.append(Running(check, device, folder, until))
            beside[-1].go()
        while waiting and time.monotonic() < until:
            blocked = {running.check.name for running in beside}
            ready = next((check for check in waiting if check.after not in blocked), None)
            if ready is not None:
                for check in [ready, *(c for c in waiting if c is not ready)][: ahead + 1]:
                    if check.name not in started:
                        started[check.name] = Running(check, device, folder, until)
                waiting.remove(ready)
                current = started[ready.name]
                current.go()
                while not current.over:
                    reap()
                    time.sleep(0.05)
                note(current)
            reap()
            time.sleep(0.05)
        while beside:
            reap()
            time.sleep(0.05)
    finally:
        for running in [*started.values(), *beside]:
            running.kill()
    return results


def line(result: dict[str, Any]) -> str:
    why = "; ".join(result["faults"]) or result.get("reason", "")
    return f"{result['verdict'].upper():8} {result['name']:14} {result['seconds']:6.1f} s  {why}"


def table(results: list[dict[str, Any]]) -> str:
    """All figures, a line each."""
    lines = []
    for result in results:
        lines.append(line(result))
        for name, value in result["figures"].items():
            lines.append(f"    {name}: {json.dumps(value) if isinstance(value, dict | list) else value}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="cuda:0, or cpu for tiny models")
    parser.add_argument("--only", default="", metavar="NAME,NAME", help="only these checks, in this order")
    parser.add_argument("--skip", default="", metavar="NAME,NAME", help="all but these checks")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), metavar="DIR", help="where results go")
    parser.add_argument("--limit", type=float, default=600.0, metavar="SECONDS", help="of all checks together")
    parser.add_argument("--list", action="store_true", help="name the checks")
    args = parser.parse_args()
    if args.list:
        print("\n".join(f"{check.name:14} {check.about}" for check in CHECKS))
        return 0
    only, skip = ([name for name in names.split(",") if name] for names in (args.only, args.skip))
    unknown = {*only, *skip} - {check.name for check in CHECKS}
    if unknown:
        parser.error(f"there is no check {', '.join(sorted(unknown))}; --list names them")
    named = {check.name: check for check in CHECKS}
    chosen = [named[name] for name in dict.fromkeys(only or named) if name not in skip]
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ["GPU_CHECK_OUT"] = str(args.out.absolute())
    began = time.monotonic()
    results = run(chosen, args.device, args.out, AHEAD if (os.cpu_count() or 1) >= 8 else 1, args.limit)
    print(table(results))
    bad = [result["name"] for result in results if result["verdict"] not in ("passed", "skipped")]
    skipped = [result["name"] for result in results if result["verdict"] == "skipped"]
    missing = [check.name for check in chosen if check.name not in {result["name"] for result in results}]
    bad += [f"{name} (no time left)" for name in missing]
    verdict = f"NOT RIGHT: {', '.join(bad)}" if bad else "PASS"
    print(f"{verdict} in {time.monotonic() - began:.0f} s" + f"; skipped: {', '.join(skipped)}" * bool(skipped))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
