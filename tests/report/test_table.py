import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lemix_hpc.report.build import build_report
from lemix_hpc.report.table import render


def printed(report: dict[str, Any]) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(render(report))
    return capture.get()


def test_shows_figures_with_units(example_run: Path) -> None:
    text = printed(build_report(example_run))
    for part in (
        "least-completion",
        "1 node x 2 stages",
        "3 finished of 4 · 1 rejected · 0 lost",
        "0.0 % in 1 T0 · 50.0 % in 5 T0 · 75.0 % in 10 T0",
        "0.0 % in 1 T0 · 66.7 % in 5 T0 · 100.0 % in 10 T0",
        "1 finished of 1 · 1 step",
        "2.0000 nats/token",
        "40.0 tokens/s",
        "0.5 tasks/s",
        "46.9 %",
    ):
        assert part in text
    assert "warning" not in text


def test_fits_a_terminal_of_eighty_columns(example_run: Path) -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(render(build_report(example_run)))
    assert max(map(len, capture.get().splitlines())) <= 80


def test_leaves_out_what_was_not_there(empty_run: Path) -> None:
    text = printed(build_report(empty_run))
    assert "serving" not in text
    assert "training" not in text
    assert "- tasks/s" in text


def test_warns(example_run: Path) -> None:
    report = build_report(example_run)
    report["weight_versions"]["mixed_batches"] = 1
    report |= {"malformed_lines": 2, "outside_range": 3}
    report["training"] |= {"skipped_steps": 4, "lost_losses": 5, "stopped": True}
    report["drift"] = [
        {"stage": 1, "kind": "serve", "ratio": 2.5, "since_s": 3.0, "until_s": None},
        {"stage": 0, "kind": "backward", "ratio": 0.4, "since_s": 1.0, "until_s": 20.0},
    ]
    report["stragglers"] = [{"node": 3, "stage": 1, "ratio": 1.6, "since_s": 60.0, "until_s": None}]
    text = printed(report)
    assert "1 serving batch saw different weights" in text
    assert "4 steps skipped, since their gradients were not finite; training stopped there" in " ".join(text.split())
    assert "the loss of 5 micro-batches was not finite" in text
    assert "2 input lines left out" in text
    assert "3 requests beyond the range of the coefficients" in text
    assert "stage 1 serve took 2.50 x the coefficients' time from 3.00 s on" in text
    unwrapped = " ".join(text.split())
    assert "node 3 stage 1 took 1.60 x the time of other nodes from 60.0 s on" in unwrapped
    assert "stage 0 backward took 0.4 x the coefficients' time from 1.00 s to 20.0 s" in unwrapped


@pytest.mark.parametrize("heavy", ["numpy", "torch"])
def test_import_is_light(heavy: str) -> None:
    code = f"import sys, lemix_hpc.report.table; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
