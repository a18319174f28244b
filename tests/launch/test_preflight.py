"""What is refused before anything starts, and what is only told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import LoadedRecipe, read_recipe
from lemix_hpc.launch.preflight import preflight, preflight_profile, preflight_simulation
from tests.checkpoints.conftest import MakeCheckpoint, make_checkpoint
from tests.launch.conftest import COEFFICIENTS

__all__ = ["make_checkpoint"]

Write = Callable[..., LoadedRecipe]

EMULATED = f"engine: {{kind: emulated, coefficients: {COEFFICIENTS}}}"
SERVING = "serving: {source: {kind: poisson, rate: 50, requests: 5}}"
LLAMA = "config: {model_type: llama, num_hidden_layers: 4, vocab_size: 257}"
COMPUTES = f"model: {{{LLAMA}}}\nengine: {{kind: torch, device: cpu}}"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Reads a recipe of these lines."""

    def read(*lines: str) -> LoadedRecipe:
        path = tmp_path / "r.yaml"
        path.write_text("\n".join(lines) + "\n")
        return read_recipe(path)

    return read


@pytest.fixture(params=[False, True])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether this machine has an NVIDIA GPU, as far as anybody can tell who looks for its device file."""
    there, real = bool(request.param), Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: there if path == Path("/dev/nvidiactl") else real(path))
    return there


def refused(loaded: LoadedRecipe, cluster: str = "local") -> list[str]:
    """The lines that say why a run cannot start, without the directory of the recipe."""
    with pytest.raises(UserError) as error:
        preflight(loaded, cluster)
    return str(error.value).replace(f"{Path(loaded.source).parent}/", "").splitlines()


@pytest.mark.parametrize("engine", [EMULATED, COMPUTES])
@pytest.mark.parametrize("cluster", ["local", "slurm"])
def test_a_sound_recipe_passes_and_nothing_is_left_out(write: Write, engine: str, cluster: str) -> None:
    assert preflight(write("nodes: {stages: 2}", engine, SERVING), cluster) == ()


def test_all_mistakes_of_a_recipe_are_told_at_once_each_with_its_line(write: Write) -> None:
    bad = write("nodes: {count: 1}", "policy:", "  placement: separate", "  training_nodes: auto", COMPUTES)
    assert refused(bad) == [
        "r.yaml: there is nothing to do; give a `serving` section, a `training` section, or both",
        "r.yaml:3: policy.placement: separate needs at least 2 nodes, one to serve and one to train, and nodes.count is 1",
        "r.yaml:4: policy.training_nodes: auto works in simulation only; run `lemix compare RECIPE --split auto`, and give "
        "here the number it finds",
    ]


def test_the_split_of_nodes_is_searched_in_simulation_only(write: Write) -> None:
    automatic = write("nodes: {count: 2}", "policy: {placement: separate, training_nodes: auto}", EMULATED, SERVING)
    [reason] = refused(automatic)
    assert reason.startswith("r.yaml:2: policy.training_nodes: auto works in simulation only; run `lemix compare ")
    preflight_simulation(automatic)


# Coefficients


def test_every_coefficient_file_is_read(write: Write, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("nonsense: 1\n")
    bad = write(
        "nodes: {count: 2, kinds: [{count: 1}, {count: 1, coefficients: bad.yaml}]}",
        "engine: {kind: emulated, coefficients: bad.yaml}",
        "policy: {coefficients: bad.yaml}",
        SERVING,
    )
    found = "bad.yaml: expected a coefficient file with `schema: 1`, found "
    reasons = refused(bad)
    for reason, key in zip(
        reasons,
        ("r.yaml:2: engine.coefficients", "r.yaml:3: policy.coefficients", "r.yaml:1: nodes.kinds.1.coefficients"),
        strict=True,
    ):
        assert reason.startswith(f"{key}: {found}")
    with pytest.raises(UserError, match=r"r\.yaml:2: engine\.coefficients"):
        preflight_simulation(bad)


def test_coefficients_must_be_there_for_as_many_stages(write: Write) -> None:
    assert refused(write("nodes: {stages: 33}", EMULATED, SERVING)) == [
        "r.yaml:2: engine.coefficients: 33 stages need at least 33 layers, and Llama-2-7B has 32; "
        "set nodes.stages to at most 32"
    ]


def test_files_that_are_missing_are_told_together_with_what_is_wrong_in_others(write: Write) -> None:
    bad = write("nodes: {stages: 33}", EMULATED, "policy: {coefficients: none.yaml}", SERVING)
    assert refused(bad) == [
        "r.yaml:3: policy.coefficients: there is no file none.yaml",
        "r.yaml:2: engine.coefficients: 33 stages need at least 33 layers, and Llama-2-7B has 32; "
        "set nodes.stages to at most 32",
    ]


# Model


def test_a_model_needs_a_layer_for_every_stage(write: Write) -> None:
    many = write("nodes: {stages: 5}", COMPUTES, SERVING)
    reason = "r.yaml:1: nodes.stages: 5 stages need as many decoder layers, and the model has 4"
    assert refused(many) == [reason]
    for check in (preflight_simulation, lambda loaded: preflight_profile(loaded, "local")):
        with pytest.raises(UserError, match="5 stages need as many decoder layers"):
            check(many)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("config: {model_type: bloom}", "model: the model type 'bloom' is not supported. Supported are llama "),
        (
            "config: {model_type: llama, hidden_size: 0}",
            "model: the config's hidden_size is 0, but it must be a positive whole number.",
        ),
        ("path: checkpoint", "model: model.path: checkpoint/config.json could not be read: "),
    ],
)
def test_a_model_that_is_not_understood(write: Write, tmp_path: Path, model: str, reason: str) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{")
    [told] = refused(write(f"model: {{{model}}}", "engine: {kind: torch, device: cpu}", SERVING))
    assert told.startswith(f"r.yaml:1: {reason}")


def test_an_emulated_run_may_name_a_model_that_is_then_looked_at(write: Write) -> None:
    assert preflight(write(f"model: {{{LLAMA}}}", EMULATED, SERVING), "local") == ()
    [told] = refused(write("model: {config: {model_type: bloom}}", EMULATED, SERVING))
    assert "the model type 'bloom' is not supported" in told


# Devices


def test_a_local_run_on_gpus_needs_one(write: Write, gpu: bool) -> None:
    cuda = write(f"model: {{{LLAMA}}}", "engine:", "  kind: torch", "  device: cuda", SERVING)
    if gpu:
        assert preflight(cuda, "local") == ()
    else:
        reason = "this machine has no NVIDIA GPU; set engine.device: cpu, or run under Slurm"
        assert refused(cuda) == [f"r.yaml:4: engine.device: {reason}"]
        with pytest.raises(UserError, match="no NVIDIA GPU"):
            preflight_profile(cuda, "local")
    assert preflight(cuda, "slurm") == (), "the login node need not have one"
    preflight_profile(cuda, "slurm")
    preflight_simulation(cuda)


@pytest.mark.usefixtures("gpu")
def test_an_emulated_run_needs_no_gpu(write: Write) -> None:
    engine = EMULATED.replace("emulated,", "emulated, device: cuda,")
    assert preflight(write(engine, SERVING), "local") == ()


# Workload


def test_a_trace_that_cannot_be_read_costs_no_allocation(write: Write, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    [told] = refused(write(EMULATED, "serving: {source: {kind: azure, path: empty.csv}}"), "slurm")
    assert told.startswith("empty.csv: expected ") and "the file is empty" in told


def test_lines_that_will_be_left_out_are_told(write: Write, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "one two three four five"}\n{"words": 3}\n')
    training = "training: {data: {path: text.jsonl}, sequence_length: 8, micro_batch_size: 1}"
    [told] = preflight(write(COMPUTES, SERVING, training), "local")
    assert told.startswith(f"left out: {tmp_path}/text.jsonl, line 2: expected `text`")


def test_text_that_makes_no_micro_batch_is_refused(write: Write, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "one"}\n')
    training = "training: {data: {path: text.jsonl}, sequence_length: 64}"
    [told] = refused(write(COMPUTES, SERVING, training))
    assert told.startswith(
        "text.jsonl: 1 documents with 4 tokens make 0 full rows of sequence_length 64, fewer than the "
    )


# Profiling


def test_profiling_needs_no_work(write: Write) -> None:
    preflight_profile(write(COMPUTES), "local")


def test_profiling_reads_the_coefficients_too(write: Write, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("nonsense: 1\n")
    with pytest.raises(UserError, match=r"r\.yaml:3: policy\.coefficients: "):
        preflight_profile(write(COMPUTES, "policy: {coefficients: bad.yaml}"), "local")


def test_a_checkpoint_to_go_on_from_is_looked_at_before_anything_starts(
    write: Write, tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    work = ["training: {micro_batches: 1, sequence_length: 4, data: {path: text.jsonl}, resume: .}", COMPUTES]
    (tmp_path / "text.jsonl").write_text('{"text": "a b c"}\n')
    assert refused(write(*work)) == [
        f"r.yaml:1: training.resume: {tmp_path} has no checkpoint; give a directory such as RUN/checkpoints/step-00000100, or "
        "that of a run, whose newest checkpoint is taken".replace(f"{tmp_path}/", "")
    ]
    made = make_checkpoint(3, model={"model_type": "llama", "num_hidden_layers": 5})
    [problem] = refused(write(*work))
    assert problem.startswith("r.yaml:1: training.resume: ")
    assert problem.endswith(
        "is of a model with num_hidden_layers 5, and this recipe's has 4; give the same model, or another checkpoint"
    )
    made.path.joinpath("manifest.json").write_text("{}")
    assert "damaged" in refused(write(*work))[0]
    make_checkpoint(3, model={"model_type": "llama", "num_hidden_layers": 4})
    assert preflight(write(*work), "local") == ()


def test_keys_of_clients_are_looked_at_before_a_run_starts(write: Write, tmp_path: Path) -> None:
    lines = ("engine: {kind: vllm}", f"model: {{{LLAMA}}}", "serving: {http: {api_key_file: keys}}")
    (problem,) = refused(write(*lines))
    assert problem.endswith(
        "r.yaml:3: serving.http.api_key_file: keys: the keys cannot be read: No such file or directory"
    )
    (tmp_path / "keys").write_text("secret")
    (tmp_path / "keys").chmod(0o644)
    (problem,) = refused(write(*lines))
    assert "do: chmod 600 keys" in problem and "secret" not in problem
    (tmp_path / "keys").chmod(0o600)
    preflight(write(*lines), "slurm")


def test_a_key_of_the_environment_that_no_client_could_send(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEMIX_API_KEY", "secret\nsecret")
    lines = ("engine: {kind: vllm}", f"model: {{{LLAMA}}}")
    (problem,) = refused(write(*lines, "serving: {http: {port: 0}}"))
    assert problem == "LEMIX_API_KEY: a key is one line of printable characters; give another one, or none"
    preflight(write(*lines, "serving: {http: {port: 0, api_key: mine}}"), "slurm")


# Memory


@pytest.mark.parametrize("engine", [EMULATED, COMPUTES], ids=["emulated", "torch"])
def test_a_task_that_no_stage_can_ever_hold_costs_no_allocation(write: Write, tmp_path: Path, engine: str) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "a b c d e f g"}\n' * 500)
    data = "" if engine == EMULATED else "data: {path: text.jsonl}, "
    trained = f"training: {{{data}micro_batches: 2, sequence_length: 128, micro_batch_size: 40, release: sync}}"
    resting = 51.9 if engine == EMULATED else 0.02
    common = ("nodes: {stages: 2}", engine, trained)

    def limit(capacity_gb: float) -> str:
        return f"policy: {{memory: {{capacity_gb: {capacity_gb}, kappa: 1.0, mode: wait}}}}"

    [reason] = refused(write(*common, limit(resting)))
    assert "a training micro-batch" in reason or "what a pass takes" in reason
    assert "never fits on stage 0 of node 0" in reason
    preflight(write(*common, limit(400.0)), "local")
