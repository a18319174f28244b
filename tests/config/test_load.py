from pathlib import Path

import pytest
import yaml

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import chosen_yaml, load_recipe, resolved_yaml
from tests.conftest import REPOSITORY

GOOD = """\
name: toy
cluster:
  kind: local
  time: 1:00:00
nodes: {count: 1, stages: 2}
engine:
  kind: emulated
  coefficients: coefficients.yaml
serving:
  source: {kind: poisson, rate: 5, requests: 20}
training:
  learning_rate: 1e-4
  share: 0.3
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def message(tmp_path: Path, text: str, *overrides: str) -> str:
    """The message for a broken recipe, with the file's directory left out."""
    (tmp_path / "coefficients.yaml").touch()
    with pytest.raises(UserError) as caught:
        load_recipe(write(tmp_path, text), overrides)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_values_defaults_and_yaml_1_2_scalars(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe.nodes.stages == 2
    assert recipe.training.learning_rate == 1e-4
    assert recipe.cluster.time == "1:00:00"  # YAML 1.1 reads 3600 here
    assert recipe.engine.max_batch_requests == 8


def test_relative_paths_are_taken_from_the_recipe_and_those_of_overrides_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    path = write(tmp_path, GOOD)
    assert load_recipe(path).engine.coefficients == tmp_path / "coefficients.yaml"
    assert load_recipe(path, ["engine.coefficients=own.yaml"]).engine.coefficients == elsewhere / "own.yaml"


def test_lists_of_paths_are_taken_from_the_recipe_too(tmp_path: Path) -> None:
    data = "training:\n  micro_batches: 1\n  data: {path: [a.jsonl, 'b/*.gz', /c.parquet]}\n"
    recipe = load_recipe(write(tmp_path, data))
    assert recipe.training.data.path == [tmp_path / "a.jsonl", tmp_path / "b" / "*.gz", Path("/c.parquet")]
    assert load_recipe(write(tmp_path, resolved_yaml(recipe))) == recipe
    wrong = message(tmp_path, "training:\n  data: {path: [1]}\n")
    assert wrong.startswith("recipe.yaml:2: training.data.path"), wrong


def test_overrides_replace_add_and_are_yaml(tmp_path: Path) -> None:
    overrides = ["nodes.count=4", "slo.factors=[2, 3]", "serving.window.limit=7", "policy.placement=round-robin"]
    recipe = load_recipe(write(tmp_path, GOOD), overrides)
    assert recipe.nodes.count == 4
    assert recipe.slo.factors == [2.0, 3.0]
    assert recipe.serving.window.limit == 7
    assert recipe.policy.placement == "round-robin"


@pytest.mark.parametrize("name", ["toy", "1e-4", "1.5", "null", "no"])
def test_resolved_recipe_reloads_to_an_equal_one(tmp_path: Path, name: str) -> None:
    recipe = load_recipe(write(tmp_path, GOOD.replace("name: toy", f"name: '{name}'")))
    text = resolved_yaml(recipe)
    assert load_recipe(write(tmp_path, text)) == recipe
    assert yaml.safe_load(text)["name"] == name  # other readers see text too
    assert "max_batch_tokens: 4096" in text
    assert load_recipe(write(tmp_path, chosen_yaml(recipe))) == recipe


@pytest.mark.parametrize("path", sorted((REPOSITORY / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_what_is_chosen_of_a_recipe_reloads_to_an_equal_one(tmp_path: Path, path: Path) -> None:
    recipe = load_recipe(path)
    text = chosen_yaml(recipe)
    (tmp_path / "chosen.yaml").write_text(text)
    assert load_recipe(tmp_path / "chosen.yaml") == recipe
    assert len(text.splitlines()) < 60 < len(resolved_yaml(recipe).splitlines())


@pytest.mark.parametrize(
    ("engine", "most", "planned"),
    [
        ("{kind: torch}", 8, 8),
        ("{kind: vllm}", 256, 8),
        ("{kind: vllm, max_batch_tokens: 64}", 64, 8),
        ("{kind: vllm, max_batch_requests: 64}", 64, 64),
        ("{kind: vllm, max_batch_requests: 5}", 5, 5),
    ],
)
def test_a_batch_takes_what_its_engine_usually_does(tmp_path: Path, engine: str, most: int, planned: int) -> None:
    path = tmp_path / "recipe.yaml"
    serving = "{source: {kind: constant, rate: 1, requests: 1}, prompts: {path: recipe.yaml}}"
    path.write_text(f"engine: {engine}\nmodel: {{config: {{model_type: llama}}}}\nserving: {serving}\n")
    recipe = load_recipe(path)
    assert (recipe.engine.max_batch_requests, recipe.engine.cached_requests) == (most, planned)
    assert f"max_batch_requests: {most}\n" in resolved_yaml(recipe)
    assert ("max_batch_requests" in chosen_yaml(recipe)) == ("max_batch_requests" in engine)
    path.write_text(resolved_yaml(recipe))
    assert load_recipe(path).engine == recipe.engine, "the number means the same when it is read again"


BROKEN = {
    "unknown key with a near one": (
        "engine:\n  kinds: torch\n",
        "recipe.yaml:2: engine.kinds: unknown key; did you mean 'kind'? (valid: kind, coefficients, device, dtype, "
        "share_devices, device_buffers, max_batch_tokens, max_batch_requests, wait, timeout_s, vllm)",
    ),
    "key of another section": (
        "partition: gpu\n",
        "recipe.yaml:1: partition: unknown key; did you mean 'cluster.partition'? (valid: name, seed, cluster, nodes, model, "
        "engine, serving, training, policy, slo, simulate, report, profile)",
    ),
    "unknown key without a near one": (
        "slo:\n  zzz: 1\n",
        "recipe.yaml:2: slo.zzz: unknown key (valid: factors, ttft_ms, tpot_ms, response_ms, completion_window_s)",
    ),
    "unknown key in a chosen source": (
        "serving:\n  source:\n    kind: poisson\n    rate: 1\n    requests: 1\n    rat: 2\n",
        "recipe.yaml:6: serving.source.rat: unknown key; did you mean 'rate'? (valid: kind, rate, duration_s, requests, "
        "lengths, on_s, off_s, swing, period_s)",
    ),
    "wrong type": (
        "nodes:\n  count: two\n",
        "recipe.yaml:2: nodes.count: expected a whole number, found 'two'",
    ),
    "text and truth for numbers": (
        "nodes:\n  count: true\n  stages: '2'\n",
        "recipe.yaml:2: nodes.count: expected a whole number, found true\n"
        "recipe.yaml:3: nodes.stages: expected a whole number, found '2'",
    ),
    "number for text": (
        "cluster: {time: 30}\n",
        "recipe.yaml:1: cluster.time: expected text; write it in quotes, found 30",
    ),
    "out of range": (
        "nodes:\n\n  stages: 0\n",
        "recipe.yaml:3: nodes.stages: expected greater than 0, found 0",
    ),
    "wrong choice": (
        "engine: {kind: toch}\n",
        "recipe.yaml:1: engine.kind: expected one of 'emulated', 'torch' or 'vllm', found 'toch'; "
        "did you mean 'torch'?",
    ),
    "unknown source": (
        "serving:\n  source: {kind: poison}\n",
        "recipe.yaml:2: serving.source.kind: expected one of 'azure', 'mooncake', 'burstgpt', 'openai-batch', 'poisson', "
        "'bursty', 'constant' or 'daily', found 'poison'; did you mean 'poisson'?",
    ),
    "source without a kind": (
        "serving:\n  source: {rate: 3}\n",
        "recipe.yaml:2: serving.source.kind: missing; give one of 'azure', 'mooncake', 'burstgpt', 'openai-batch', 'poisson', "
        "'bursty', 'constant', 'daily'",
    ),
    "missing key": (
        "serving:\n  source:\n    kind: azure\n",
        "recipe.yaml:2: serving.source.path: missing; this section needs it",
    ),
    "validator of a section": (
        "training:\n  share: 0.5\n  micro_batches: 4\n",
        "recipe.yaml:1: training: give `share` or `micro_batches`, not both",
    ),
    "validator of a key": (
        "cluster:\n  time: soon\n",
        "recipe.yaml:2: cluster.time: 'soon' is no Slurm time limit; write minutes, H:M:S or D-H:M:S, such as 01:30:00",
    ),
    "value where a section belongs": (
        "serving: 3\n",
        "recipe.yaml:1: serving: expected a section with keys (source, http, mode, batch_requests, rate_scale, window, "
        "max_prompt_tokens, "
        "max_new_tokens, prompts, temperature, conversations), found 3",
    ),
    "section left empty": (
        "policy:\n",
        "recipe.yaml:1: policy: expected a section with keys (placement, training_nodes, copy_every_steps, "
        "lambda1, lambda2, tau, keep, fill, coefficients, recalibrate, lanes, order, serving_first, yield_training, pace, "
        "batch_share, admission, max_hold_s, minimum_training_share, output_lengths, drain_reserve_s, memory), found nothing",
    ),
    "item of a list": (
        "slo:\n  factors:\n    - 1\n    - high\n",
        "recipe.yaml:4: slo.factors.1: expected a number, found 'high'",
    ),
    "duplicate key": (
        "nodes: {count: 1}\nseed: 2\nnodes: {count: 2}\n",
        "recipe.yaml:3: nodes: given twice; the first is on line 1",
    ),
    "syntax": (
        "nodes:\n  count: [1\nseed: 3\n",
        "recipe.yaml:3: not valid YAML: expected ',' or ']', but got ':'",
    ),
    "tab": (
        "nodes:\n\tcount: 1\n",
        "recipe.yaml:2: not valid YAML: found character '\\t' that cannot start any token; indent with spaces, not tabs",
    ),
    "empty": (
        "# nothing yet\n",
        "recipe.yaml: the recipe is empty; it needs at least a `serving` or a `training` section",
    ),
    "no mapping": (
        "- serving\n",
        "recipe.yaml:1: a recipe is a set of sections such as `serving:`, found a list",
    ),
}


@pytest.mark.parametrize(("text", "expected"), BROKEN.values(), ids=BROKEN.keys())
def test_message_of_a_broken_recipe(tmp_path: Path, text: str, expected: str) -> None:
    assert message(tmp_path, text) == expected


BROKEN_OVERRIDES = {
    "wrong value": (
        "engine.kind=toch",
        "--set engine.kind=toch: engine.kind: expected one of 'emulated', 'torch' or 'vllm', found 'toch'; "
        "did you mean 'torch'?",
    ),
    "unknown key": (
        "slo.factor=[1]",
        "--set slo.factor=[1]: slo.factor: unknown key; did you mean 'factors'? (valid: factors, ttft_ms, tpot_ms, "
        "response_ms, completion_window_s)",
    ),
    "no value": ("nodes.count", "--set nodes.count: write it as section.key=value, such as nodes.count=4"),
    "below a value": ("name.first=x", "--set name.first=x: name is 'toy', not a section with keys"),
    "not YAML": (
        "slo.factors=[1",
        "--set slo.factors=[1:1: not valid YAML: expected ',' or ']', but got '<stream end>'",
    ),
}


@pytest.mark.parametrize(("override", "expected"), BROKEN_OVERRIDES.values(), ids=BROKEN_OVERRIDES.keys())
def test_message_of_a_broken_override(tmp_path: Path, override: str, expected: str) -> None:
    assert message(tmp_path, GOOD, override) == expected


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    text = "seed: -1\nnodes: {count: 0, stage: 2}\nengine: {kind: gpu}\n"
    found = message(tmp_path, text, "slo.factors=3").splitlines()
    assert [line.split(": ")[1] for line in found] == [
        "seed",
        "nodes.count",
        "nodes.stage",
        "engine.kind",
        "slo.factors",
    ]


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such recipe file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="is a directory; give a file"):
        load_recipe(tmp_path)


def test_a_merged_mapping_keeps_its_lines(tmp_path: Path) -> None:
    text = "model: &m\n  config: {model_type: llama}\nserving:\n  <<: {mode: scor}\n  source: {kind: azure, path: x}\n"
    assert message(tmp_path, text).startswith(
        "recipe.yaml:4: serving.mode: expected 'score' or 'generate', found 'scor'"
    )
