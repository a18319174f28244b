import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import COEFFICIENTS, Command

AFFINE = {"a": 3e-4, "b": 2e-6, "c": 1e-9}


def written(path: Path, **changes: Any) -> Path:
    content = {
        "schema": 1,
        "hardware": "a device",
        "model": "a model",
        "dtype": "float16",
        "layers": 8,
        "per_layer": {"forward": AFFINE},
        "provenance": {"source": "made up", "versions": {"torch": "2"}},
        **changes,
    }
    path.write_text(
        yaml.safe_dump({key: value for key, value in content.items() if value is not None}, sort_keys=False)
    )
    return path


RESIDUALS = {
    "points": 9,
    "folds": 3,
    "median_rel_error": 0.01,
    "p95_rel_error": 0.02,
    "max_rel_error": 0.03,
    "r2": 0.99,
}


def test_show_says_everything_in_plain_units(inside: Command, tmp_path: Path) -> None:
    stage = {
        "forward": AFFINE,
        "backward": {"form": "quadratic", "eta": 1e-9},
        "step_s": 0.002,
        "memory": {"weights_bytes": 123456, "kv_bytes_per_token": 16.5},
        "residuals": {"forward": RESIDUALS},
    }
    written(
        tmp_path / "file.yaml",
        per_layer=None,
        stages=[stage],
        valid={"batch": [1, 8], "max_length": 64},
        links={"host_to_device_gb_s": 24.5},
        points="points.csv",
    )
    assert inside("coefficients", "show", "file.yaml").stdout == (
        "a model, float16, 8 layers, on a device\n\n"
        "stage 0\n"
        "  forward: affine-quadratic: a 300 us, b 2 us/token, c 1 ns/token^2, d 0/cached token\n"
        "    relative error median 1.0%, 95th percentile 2.0%, largest 3.0%, R^2 0.9900 (9 points, 3 folds)\n"
        "  backward: quadratic: eta 1 ns/token^2\n"
        "  optimizer step: 2 ms\n"
        "  memory: weights bytes 123,456, optimizer bytes 0, kv bytes per token 16.5\n\n"
        "links\n  host_to_device_gb_s: 24.5\n\n"
        "fitted on\n  max_length: 64\n  batch: 1 to 8\n\n"
        "provenance\n  source: made up\n  versions:\n    torch: 2\n  points: points.csv\n"
    )


def test_show_json(inside: Command) -> None:
    content = json.loads(inside("coefficients", "show", COEFFICIENTS, "--json").stdout)
    assert content["schema"] == 1
    assert content["per_layer"]["forward"]["form"] == "affine-quadratic"


@pytest.mark.parametrize("command", ["show", "check"])
def test_an_unknown_schema_is_refused(inside: Command, tmp_path: Path, command: str) -> None:
    written(tmp_path / "file.yaml", schema=7)
    done = inside("coefficients", command, "file.yaml")
    assert done.returncode == 2
    assert done.stderr == "file.yaml: expected a coefficient file with `schema: 1`, found 7\n"


TABLE = "batch,length,ms_per_layer\n" + "".join(
    f"1,{length},{1e3 * (3e-4 + 2e-6 * length + 1e-9 * length**2)}\n" for length in (16, 64, 256, 1024)
)


@pytest.mark.parametrize(
    ("changes", "table", "message"),
    [
        ({}, None, "in order; any number of stages, no points beside it"),
        ({"points": "points.csv"}, TABLE, "in order; it fits the 4 points of points.csv"),
        ({"per_layer": None, "stages": [{"forward": AFFINE}] * 2}, None, "in order; 2 stages, no points beside it"),
    ],
)
def test_a_file_in_order(
    inside: Command, tmp_path: Path, changes: dict[str, Any], table: str | None, message: str
) -> None:
    written(tmp_path / "file.yaml", **changes)
    if table:
        (tmp_path / "points.csv").write_text(table)
    done = inside("coefficients", "check", "file.yaml")
    assert (done.returncode, done.stdout) == (0, f"file.yaml: {message}\n")


RESIDUAL_TIMES = {"forward": {**AFFINE, "a": 6e-4}, "residuals": {"forward": RESIDUALS}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layers": 1, "per_layer": None, "stages": [{"forward": AFFINE}] * 2},
            "2 stages need at least 2 layers, and the file has 1",
        ),
        ({"points": "none.csv"}, "none.csv: cannot be read"),
        ({"points": "points.csv", "per_layer": RESIDUAL_TIMES}, "forward: points.csv is off by"),
        (
            {"points": "points.csv", "per_layer": None, "stages": [{"forward": AFFINE}]},
            "points.csv has times of layers",
        ),
        ({"per_layer": {"forward": {**AFFINE, "a": -1}}}, "per_layer.forward.a: expected greater than or equal to 0"),
        ({"valid": {"tokens": [9, 1]}}, "tokens: the smallest comes first"),
    ],
)
def test_a_file_out_of_order(inside: Command, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    written(tmp_path / "file.yaml", **changes)
    (tmp_path / "points.csv").write_text(TABLE)
    done = inside("coefficients", "check", "file.yaml")
    assert done.returncode == 2
    assert message in done.stderr


def test_diff_compares_passes_through_all_stages(inside: Command, tmp_path: Path) -> None:
    """One file per layer, the other with two stages that take twice as long together, and no longer than 1000 tokens."""
    written(tmp_path / "a.yaml")
    twice = {key: 8 * value for key, value in AFFINE.items()}
    written(tmp_path / "b.yaml", per_layer=None, stages=[{"forward": twice}] * 2, valid={"max_length": 1000})
    rows = json.loads(inside("coefficients", "diff", "a.yaml", "b.yaml", "--json").stdout)
    assert {row["kind"] for row in rows} == {"prefill", "decode", "backward"}
    assert max(row["length"] + row["context"] for row in rows) == 256
    assert [row["change"] for row in rows] == pytest.approx([1.0] * len(rows))
    first = rows[0]
    assert (first["kind"], first["batch"], first["length"]) == ("prefill", 1, 16)
    assert first["first_s"] == pytest.approx(8 * (3e-4 + 2e-6 * 16 + 1e-9 * 256))
    text = inside("coefficients", "diff", "a.yaml", "b.yaml").stdout
    assert "\nprefill       1      16       0       2.658       5.316    +100.0%\n" in text
    assert text.endswith("\nThe mean difference is 100.0%, the largest 100.0%.\n")


def test_diff_of_files_without_a_common_range(inside: Command, tmp_path: Path) -> None:
    written(tmp_path / "a.yaml", valid={"max_length": 8})
    done = inside("coefficients", "diff", "a.yaml", "a.yaml")
    assert done.returncode == 0
    assert "No pass of the grid is within the measured range of both files." in done.stdout
