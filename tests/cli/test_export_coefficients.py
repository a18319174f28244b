"""What a run learned, as a file that the next run starts from."""

import json
from pathlib import Path

import msgspec
import pytest
import yaml

from lemix_hpc.policy.memory import Learned
from lemix_hpc.profiling.coefficients import load_coefficients
from lemix_hpc.records.schema import LearnedTimes
from tests.cli.conftest import COEFFICIENTS, Command


@pytest.fixture
def ended_run(recipe: Path, tmp_path: Path) -> Path:
    """The directory of a run that has ended; its records are written here, not by ranks."""
    path = tmp_path / "one"
    path.mkdir()
    text = recipe.read_text()
    (path / "recipe.yaml").write_text(text)
    (path / "coefficients.yaml").write_text(COEFFICIENTS.read_text())
    record = {"id": "one", "cluster": "local", "created": 0.0, "command": [], "host": "here", "user": "me"}
    (path / "run.json").write_text(json.dumps(record | {"version": "0", "world_size": 3}))
    lessons = [Learned(stage, "serve", (2.0, 3.0, 4.0, 5.0), 40 + stage, 2.5, 1.0, 0.1) for stage in (0, 1)]
    told = LearnedTimes(str(COEFFICIENTS), True, lessons)
    (path / "learned.json").write_bytes(msgspec.json.encode(told))
    return path


def test_the_file_has_what_was_learned_and_says_from_whom(inside: Command, ended_run: Path, tmp_path: Path) -> None:
    done = inside("coefficients", "export", ended_run, "--out", "new.yaml")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Wrote new.yaml\n"
    file = load_coefficients(tmp_path / "new.yaml")
    (given,) = set(load_coefficients(COEFFICIENTS).latency(2).forward)
    assert file.latency(2).forward == (given.with_gains((2.0, 3.0, 4.0, 5.0)),) * 2
    assert file.hardware == "NVIDIA A100 80GB"
    assert file.provenance == {
        "source": "learned by run one",
        "run": str(ended_run),
        "started_from": str(COEFFICIENTS),
        "passes": {"stage 0 serve": 40, "stage 1 serve": 41},
    }


def test_by_default_the_file_has_the_name_of_the_run_and_none_is_overwritten(
    inside: Command, ended_run: Path, tmp_path: Path
) -> None:
    assert inside("coefficients", "export", ended_run).returncode == 0
    written = (tmp_path / "one.yaml").read_text()
    again = inside("coefficients", "export", ended_run)
    assert again.returncode == 2
    assert again.stderr == "one.yaml exists; name a new file with --out\n"
    assert (tmp_path / "one.yaml").read_text() == written


@pytest.mark.parametrize(
    ("learned", "message"),
    [
        (None, "one has no learned.json; a run writes it when it ends\n"),
        (b"{", "not a file that a run wrote"),
        (
            b'{"source":null,"applied":true,"learned":[]}',
            "one learned no stage times: no pass of it was measured\n",
        ),
    ],
)
def test_a_run_that_learned_nothing(inside: Command, ended_run: Path, learned: bytes | None, message: str) -> None:
    path = ended_run / "learned.json"
    path.unlink() if learned is None else path.write_bytes(learned)
    done = inside("coefficients", "export", ended_run)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.mpi
def test_a_run_starts_from_what_another_one_learned(lemix: Command, recipe: Path, tmp_path: Path) -> None:
    wrong = yaml.safe_load(COEFFICIENTS.read_text())
    wrong["per_layer"]["forward"] = {name: 2 * value for name, value in wrong["per_layer"]["forward"].items()}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    common = ["run", recipe, "--cluster", "local", "--set", "serving.source.requests=60"]
    first = lemix(*common, "--set", "policy.coefficients=wrong.yaml", "--out", "first")
    assert first.returncode == 0, first.stderr
    assert lemix("coefficients", "export", "first", "--out", "new.yaml").returncode == 0
    second = lemix(*common, "--set", "policy.coefficients=new.yaml", "--out", "second")
    assert second.returncode == 0, second.stderr
    before, after = (
        json.loads((tmp_path / name / "learned.json").read_text())["learned"] for name in ("first", "second")
    )
    for one, other in zip(before, after, strict=True):
        assert abs(1 - other["ratio"]) < abs(1 - one["ratio"]), "nearer to what runs"
