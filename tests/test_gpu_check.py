"""`make gpu-check` as far as it goes without a GPU."""

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def gpu_check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_checks_leave_figures_and_one_that_has_no_time_fails_alone(tmp_path: Path) -> None:
    done = gpu_check("--only", "pieces,graphs", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS in" in done.stdout.splitlines()[-1]
    found = {check["name"]: check for check in json.loads((tmp_path / "gpu-check.json").read_text())["checks"]}
    assert found["pieces"]["verdict"] == "passed"
    assert found["pieces"]["figures"]["32 tokens, ms"]["paced"]["backward"] > 0
    assert found["graphs"]["verdict"] == "skipped"
    late = gpu_check("--only", "pieces,graphs", "--limit", "0", "--out", str(tmp_path))
    assert late.returncode == 1
    assert "NOT RIGHT: pieces (no time left), graphs (no time left)" in late.stdout


def test_a_check_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = gpu_check("--only", "pieces,nothing", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "there is no check nothing; --list names them" in done.stderr
