import json
from pathlib import Path

import pytest
import yaml

from lemix_hpc.policy.latency import Shape
from lemix_hpc.policy.latency_forms import Roofline
from tests.cli.conftest import Command

LAYER = Roofline(3e-4, 2e-6, 4.0, 1e-9)
FACTS = ["--hardware", "a device", "--llm", "a model", "--dtype", "float16", "--layers", "8"]


def points(tmp_path: Path, header: str = "batch,length,ms_per_layer", **columns: object) -> Path:
    """A table of what `LAYER` takes; `columns` are appended to each line."""
    more = "".join(f",{value}" for value in columns.values())
    lines = [",".join([header, *columns])]
    for batch in (1, 2, 4):
        for length in (16, 64, 256, 1024):
            seconds = LAYER.seconds(Shape.of([length] * batch))
            lines.append(f"{batch},{length},{1e3 * seconds}{more}")
    path = tmp_path / "points.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_table_of_every_form_and_the_chosen_one(inside: Command, tmp_path: Path) -> None:
    done = inside("fit", points(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "forward, per layer: 12 points, relative errors cross-validated in 10 folds"
    assert lines[1].split() == ["form", "median", "95", "%", "largest", "R^2"]
    assert [line.split()[0] for line in lines[2:4]] == ["quadratic", "affine-quadratic"]
    assert lines[4].split() == ["*", "roofline", "0.0%", "0.0%", "0.0%", "1.0000"]
    assert lines[6].startswith("* a 300 us, b 2 us/token, p 4, c 1 ns/token^2, d 0/cached token, e ")


def test_json_has_the_figures_of_the_chosen_form_and_of_all(inside: Command, tmp_path: Path) -> None:
    done = inside("fit", points(tmp_path), "--json", "--folds", "4", "--seed", "2")
    content = json.loads(done.stdout)
    assert content["model"] == "roofline"
    assert set(content["models"]) == {"quadratic", "affine-quadratic", "roofline", "interpolated"}
    for figure in ("median_rel_error", "p95_rel_error", "max_rel_error"):
        assert content[figure] == content["models"]["roofline"][figure] < 1e-3
        assert content["models"]["quadratic"][figure] > 0.1
    (fit,) = content["fits"]
    assert (fit["stage"], fit["kind"], fit["model"], content["warnings"]) == (0, "forward", "roofline", [])
    assert fit["coefficients"]["b"] == pytest.approx(2e-6, rel=1e-3)
    assert fit["models"]["roofline"]["folds"] == 4


def test_the_form_can_be_named(inside: Command, tmp_path: Path) -> None:
    content = json.loads(inside("fit", points(tmp_path), "--json", "--model", "quadratic").stdout)
    assert content["model"] == "quadratic"
    assert content["max_rel_error"] == content["models"]["quadratic"]["max_rel_error"]


def test_what_was_fitted_is_written_and_can_be_shown_and_checked(inside: Command, tmp_path: Path) -> None:
    table = points(tmp_path)
    done = inside("fit", table, *FACTS, "--out", "fitted.yaml", "--source", "made up")
    assert (done.returncode, done.stderr) == (0, "Wrote fitted.yaml\n")
    written = yaml.safe_load((tmp_path / "fitted.yaml").read_text())
    assert written["points"] == "points.csv"
    assert written["provenance"]["source"] == "made up"
    assert written["provenance"]["command"] == "lemix fit points.csv"
    assert written["valid"] == {"max_length": 1024, "batch": [1, 4], "length": [16, 1024], "tokens": [16, 4096]}
    assert str(tmp_path) not in (tmp_path / "fitted.yaml").read_text()
    shown = inside("coefficients", "show", "fitted.yaml").stdout
    assert shown.startswith(
        "a model, float16, 8 layers, on a device\n\nper layer\n  forward: roofline: a 300 us, b 2 us/token"
    )
    assert (
        inside("coefficients", "check", "fitted.yaml").stdout
        == "fitted.yaml: in order; it fits the 12 points of points.csv\n"
    )


def test_each_stage_and_kind_has_a_fit(inside: Command, tmp_path: Path) -> None:
    first = points(tmp_path, "batch,length,ms", stage=0, kind="prefill").read_text().splitlines()
    second = points(tmp_path, "batch,length,ms", stage=1, kind="prefill").read_text().splitlines()
    backward = points(tmp_path, "batch,length,ms", stage=1, kind="backward").read_text().splitlines()
    (tmp_path / "points.csv").write_text("\n".join([*first, *second[1:], *backward[1:]]) + "\n1,9999,oom,1,backward\n")
    done = inside("fit", "points.csv", *FACTS, "--out", "fitted.yaml", "--json")
    content = json.loads(done.stdout)
    assert [(fit["stage"], fit["kind"]) for fit in content["fits"]] == [(0, "forward"), (1, "forward"), (1, "backward")]
    assert content["warnings"] == [
        "1 points did not fit in memory and are left out; the smallest has batch 1, length 9999"
    ]
    assert done.stderr.startswith("warning: 1 points did not fit in memory")
    stages = yaml.safe_load((tmp_path / "fitted.yaml").read_text())["stages"]
    assert [
        stage["backward"] if isinstance(stage["backward"], float) else stage["backward"]["form"] for stage in stages
    ] == [
        2.0,
        "roofline",
    ]
    assert inside("coefficients", "check", "fitted.yaml").returncode == 0


def test_a_picture(inside: Command, tmp_path: Path) -> None:
    done = inside("fit", points(tmp_path), "--plot", "fit.png")
    assert (done.returncode, done.stderr) == (0, "Wrote fit.png\n")
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_without_matplotlib(lemix: Command, tmp_path: Path) -> None:
    """A package of that name that cannot be imported stands in for none."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "matplotlib.py").write_text("raise ImportError('no matplotlib')\n")
    done = lemix("fit", points(tmp_path), "--plot", "fit.png", PYTHONPATH=str(tmp_path / "hidden"))
    assert done.returncode == 2
    assert done.stderr == "--plot needs matplotlib; install it with `pip install 'lemix-hpc[plots]'`\n"


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("batch,length,ms\n1,16,nan\n", [], "points.csv:2: ms: expected a positive and finite number"),
        ("batch,length\n1,16\n", [], "points.csv:1: missing columns: ms_per_layer"),
        ("batch,length,ms\n1,16,1\n", [], "forward: a fit and its check need points of at least 2 sizes, found 1"),
        ("batch,length,ms\n1,16,1\n1,32,2\n", ["--model", "roofline"], "forward: roofline needs points of at least"),
        ("batch,length,ms\n1,16,1\n1,32,2\n", ["--model", "cubic"], "--model: expected one of quadratic"),
        ("batch,length,ms\n1,16,1\n1,32,2\n", ["--folds", "1"], "--folds: cross-validation needs at least 2"),
        ("batch,length,ms\n1,16,1\n1,32,2\n", ["--plot", "fit.bmp"], "--plot fit.bmp: expected a name that ends"),
        ("batch,length,ms\n1,16,1\n1,32,2\n", ["--plot", "no/fit.png"], "no/fit.png: cannot be written"),
        ("batch,length,ms\n1,16,1\n1,32,2\n", ["--out", "no/fit.yaml", *FACTS], "no/fit.yaml: cannot be written"),
        (
            "batch,length,ms\n1,16,1\n1,32,2\n",
            ["--out", "f.yaml"],
            "--out: the file says what was measured; give --hardware",
        ),
        ("batch,length,ms,stage\n1,16,1,0\n1,32,2,2\n", [], "stages count from 0 without gaps; found 0, 2"),
        ("batch,length,ms_per_layer,stage\n1,16,1,0\n1,32,2,1\n", [], "times per layer are the same for all stages"),
    ],
)
def test_mistakes(inside: Command, tmp_path: Path, text: str, arguments: list[str], message: str) -> None:
    (tmp_path / "points.csv").write_text(text)
    done = inside("fit", "points.csv", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_doubts_are_warnings(inside: Command, tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text("batch,length,ms,note\n" + "".join(f"1,{2**n},2.0,x\n" for n in range(4, 12)))
    done = inside("fit", "points.csv")
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "warning: points.csv: columns that are not used: note",
        "warning: forward: all points have batch 1; predictions for other batch sizes are extrapolated",
        "warning: forward: all times are equal; check the clock they were measured with",
    ]


@pytest.mark.trial_data
def test_published_prompts(lemix: Command, trial_data: Path) -> None:
    done = lemix("fit", trial_data / "latency" / "a100-llama2-7b-prefill.csv", "--json")
    content = json.loads(done.stdout)
    assert content["median_rel_error"] <= 0.04
    assert content["p95_rel_error"] <= 0.15
    assert content["max_rel_error"] <= 0.25
    assert content["models"]["quadratic"]["median_rel_error"] > 10 * content["median_rel_error"]
