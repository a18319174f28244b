"""The placement that docs/extending.md adds decides, with no more than the page says."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = f"""\
nodes: {{count: 3, stages: 2}}
engine: {{kind: emulated, coefficients: {REPOSITORY}/profiling/nvidia-a100-80gb/llama-2-7b-float16.yaml}}
serving:
  source: {{kind: poisson, rate: 60, requests: 200, lengths: lmsys-chat}}
"""
# All is compiled anew here, which takes most of the time; code that is not optimised is made sooner.
SETTINGS = {"NUMBA_OPT": "0"}


def section() -> str:
    page = (REPOSITORY / "docs" / "extending.md").read_text()
    [found] = re.findall(r"^## Add a placement\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    return str(found)


def insert(path: Path, before: str, block: str) -> None:
    """Put a block of the page before the only place with this text."""
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, block + before))


def test_the_worked_placement_decides(tmp_path: Path) -> None:
    entry, function, call, keys = re.findall(r"^```(?:python|yaml)\n(.*?)^```$", section(), re.DOTALL | re.MULTILINE)
    package = tmp_path / "lemix_hpc"
    shutil.copytree(REPOSITORY / "lemix_hpc", package, ignore=shutil.ignore_patterns("__pycache__"))
    insert(package / "policy" / "placements.py", ")\n\nPLACEMENTS: ", f"    {entry.strip()},\n")
    insert(package / "policy" / "placement_rules.py", "\n\n# Turns\n", f"\n\n{function}")
    insert(package / "policy" / "placement_rules.py", "    return least_completion(candidate)\n", call)
    (tmp_path / "recipe.yaml").write_text(RECIPE + keys)

    command = [sys.executable, "-c", "from lemix_hpc.cli.main import main; main()"]
    told = subprocess.run(
        [*command, "simulate", "recipe.yaml", "--out", "run"],
        cwd=tmp_path,
        env={**os.environ, **SETTINGS, "PYTHONPATH": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert told.returncode == 0, told.stderr

    tasks = [json.loads(line) for line in (tmp_path / "run" / "tasks.jsonl").read_text().splitlines()]
    tasks.sort(key=lambda task: task["arrival"])
    assert len(tasks) == 200
    for number, task in enumerate(tasks):
        waiting = [other["node"] for other in tasks[:number] if other["finished"] > task["arrival"]]
        counts = [waiting.count(node) for node in range(3)]
        assert task["node"] == counts.index(min(counts))
    assert {task["node"] for task in tasks} == {0, 1, 2}
