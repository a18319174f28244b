"""What may be changed of a run that goes on, and how the run learns of it."""

from pathlib import Path

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import load_recipe
from lemix_hpc.launch import settings
from lemix_hpc.launch.rundir import RunDir, RunRecord
from lemix_hpc.records.settings import read_settings
from lemix_hpc.runtime.scheduler.live_settings import LiveSettings

RECIPE = """\
engine: {kind: emulated, coefficients: %s}
serving: {source: {kind: constant, rate: 1, requests: 1, lengths: lmsys-chat}}
policy: {max_hold_s: 3}
"""
A100 = Path(__file__).parents[2] / "profiling/nvidia-a100-80gb/llama-2-7b-float16.yaml"
RECORD = RunRecord("one", "local", 0.0, [], "host", "user", "0", 3)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setattr(settings, "run_state", lambda *_: "RUNNING")
    (tmp_path / "recipe.yaml").write_text(RECIPE % A100)
    return RunDir(tmp_path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("policy.placement=pack", "policy.placement=pack: cannot be changed while a run goes on"),
        ("policy.max_hold_s", "give KEY=VALUE with one of policy.admission, policy.max_hold_s"),
        ("policy.max_hold_s=soon", "policy.max_hold_s"),
        ("policy.minimum_training_share=2", "policy.minimum_training_share"),
        ("policy.max_hold_s=1\npolicy.placement=pack", "the value has a line break"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(run: RunDir, given: str, said: str) -> None:
    with pytest.raises(UserError, match=said.replace(".", r"\.")):
        settings.change(run, RECORD, ["policy.admission=none", given])
    assert read_settings(run.path) == []


def test_a_run_hears_of_each_change_once_and_the_next_attempt_has_them_all(run: RunDir) -> None:
    time = 0.0
    live = LiveSettings(run.path, load_recipe(run.recipe), lambda: time)
    settings.change(run, RECORD, ["policy.max_hold_s=5", "policy.admission=none"])
    assert live.look() is None, "it looks every second"
    time = 1.0
    change = live.look()
    assert change is not None
    assert change.values == {"policy.admission": "none", "policy.max_hold_s": "5.0"}
    assert (change.policy.admission, change.policy.max_hold_s) == ("none", 5.0)
    settings.change(run, RECORD, ["policy.max_hold_s=5", "policy.minimum_training_share=0.3"])
    time = 2.0
    change = live.look()
    assert change is not None
    assert change.values == {"policy.minimum_training_share": "0.3"}
    time = 3.0
    assert live.look() is None
    policy = load_recipe(run.recipe, read_settings(run.path)).policy
    assert (policy.admission, policy.max_hold_s, policy.minimum_training_share) == ("none", 5.0, 0.3)


def test_a_file_that_was_written_by_hand_and_is_wrong_is_told_and_changes_nothing(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    time = 0.0
    live = LiveSettings(run.path, load_recipe(run.recipe), lambda: time)
    (run.path / "settings").write_text("policy.max_hold_s=never\n")
    time = 1.0
    assert live.look() is None
    assert "settings cannot be used, and nothing is changed: " in capsys.readouterr().out
