"""Whatever is in the files that users name: a mistake is told, in time, and never by a traceback."""

from __future__ import annotations

import copy
import io
import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rich.console import Console

from lemix_hpc.checkpoints.manifest import MANIFEST, read_manifest
from lemix_hpc.cli.runs import _print_rows, _row
from lemix_hpc.cli.show import render_report
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import read_recipe, resolved_yaml
from lemix_hpc.config.recipe import Model, Recipe
from lemix_hpc.config.workload_section import TextData
from lemix_hpc.engines.model_sizes import describe
from lemix_hpc.engines.weight_files import check_weights, tensor_files
from lemix_hpc.launch.preflight import preflight
from lemix_hpc.launch.rundir import RunDir, RunRecord
from lemix_hpc.launch.states import read_progress, read_report, run_state
from lemix_hpc.profiling.coefficients import load_coefficients
from lemix_hpc.profiling.points import read_points
from lemix_hpc.records.attempts import attempts
from lemix_hpc.records.reader import RunRecords
from lemix_hpc.records.schema import RunFacts, ServedTask
from lemix_hpc.report.build import summarise
from lemix_hpc.workload.data_set import read_all
from lemix_hpc.workload.lines import Findings
from lemix_hpc.workload.openai_batch import read_openai_batch
from lemix_hpc.workload.traces import read_azure, read_burstgpt, read_mooncake
from tests.config.test_documented import ALL_KEYS
from tests.inputs.files import AZURE, BURST, LLAMA, REPOSITORY, write_recipe

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["azure", "poisson", "torch", "vllm", "emulated", "generate", "auto", 1, 2, 0.5, "text.jsonl", "."]
    )
)
VALUES = st.recursive(
    SCALARS,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside, max_size=3),
    max_leaves=8,
)
BYTES = st.binary(max_size=200) | st.text(alphabet="{}[]:,-&*!<>|'\"\n\t #ab01.e~\\", max_size=80).map(str.encode)


NUMBERS = st.floats() | st.integers(-3, 3) | st.integers() | st.sampled_from([1e12, 1e-300, 1e300, 2**40, -1, 10**6])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of recipes without mistakes."""
    made = tmp_path_factory.mktemp("recipes")
    for kind in ("torch", "emulated"):
        write_recipe(made, kind)
        (made / "recipe.yaml").rename(made / f"{kind}.yaml")
    return made


@given(st.sampled_from(["torch", "emulated"]), st.sampled_from(sorted(ALL_KEYS)), NUMBERS | VALUES)
def test_a_recipe_with_any_value_is_taken_or_refused(directory: Path, kind: str, key: str, value: Any) -> None:
    with suppress(UserError):
        loaded = read_recipe(directory / f"{kind}.yaml", [f"{key}={_yaml(value)}"])
        preflight(loaded, "slurm")
        assert load_again(directory, resolved_yaml(loaded.recipe)) == loaded.recipe


def _yaml(value: Any) -> str:
    return json.dumps(value).replace("NaN", ".nan").replace("-Infinity", "-.inf").replace("Infinity", ".inf")


def load_again(directory: Path, text: str) -> Recipe:
    path = directory / "again.yaml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path).recipe


RECIPES = st.dictionaries(st.sampled_from(sorted(Recipe.model_fields)), VALUES, max_size=4)


@given(RECIPES)
def test_any_yaml_is_taken_or_refused(content: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as directory, suppress(UserError):
        path = Path(directory) / "recipe.yaml"
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        preflight(read_recipe(path), "slurm")


def _is_empty_recipe(content: bytes) -> bool:
    """A recipe of nothing but defaults, which may be read."""
    try:
        return bool(yaml.safe_load(content) == {})
    except (yaml.YAMLError, ValueError):
        return False


@given(BYTES)
def test_any_bytes_are_no_recipe_and_no_coefficients(content: bytes) -> None:
    assume(not _is_empty_recipe(content))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "file.yaml"
        path.write_bytes(content)
        for read in (read_recipe, load_coefficients):
            with pytest.raises(UserError):
                read(path)


GOOD_COEFFICIENTS = yaml.safe_load(
    (REPOSITORY / "profiling/nvidia-a100-80gb/llama-2-7b-float16.yaml").read_text(encoding="utf-8")
)


@given(st.sampled_from(sorted(GOOD_COEFFICIENTS)), VALUES)
def test_coefficients_with_any_value_are_taken_or_refused(key: str, value: Any) -> None:
    with tempfile.TemporaryDirectory() as directory, suppress(UserError):
        path = Path(directory) / "file.yaml"
        path.write_text(json.dumps(GOOD_COEFFICIENTS | {key: value}), encoding="utf-8")
        load_coefficients(path).latency(2)


def _traces(path: Path) -> None:
    readers: tuple[Callable[..., Any], ...] = (read_azure, read_burstgpt, read_mooncake)
    for reader in readers:
        with suppress(UserError):
            list(reader(path, Findings()))
    with suppress(UserError):
        list(read_openai_batch(path, Findings(), tokenizer=None, default_output_tokens=1, answer=True))
    with suppress(UserError):
        read_all(TextData(path=path))


MAGIC = {".gz": b"\x1f\x8b\x08", ".zst": b"\x28\xb5\x2f\xfd", ".parquet": b"PAR1"}


@given(st.sampled_from(sorted(MAGIC)), BYTES, st.booleans())
def test_any_bytes_are_no_compressed_text_and_no_table(ending: str, content: bytes, begins_well: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"file{ending}"
        path.write_bytes(MAGIC[ending] + content + MAGIC[ending] if begins_well else content)
        with pytest.raises(UserError):
            read_all(TextData(path=path))


@given(BYTES | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_no_checkpoint_to_resume(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / MANIFEST).write_bytes(content)
        with pytest.raises(UserError):
            read_manifest(Path(directory))


@given(st.sampled_from(["", "batch,length,ms\n", "batch,context,kind,stage,ms\n"]), BYTES)
def test_any_bytes_are_a_table_of_points_or_none(header: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory, suppress(UserError):
        path = Path(directory) / "points.csv"
        path.write_bytes(header.encode() + content)
        read_points([path])


LINES = st.lists(VALUES.map(json.dumps) | st.text(max_size=30), max_size=4).map("\n".join)
HEADERS = st.sampled_from(["", AZURE, BURST])


@given(HEADERS, BYTES | LINES.map(lambda text: text.encode(errors="replace")))
def test_any_bytes_are_a_trace_a_batch_and_a_text_or_none(header: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "file"
        path.write_bytes(header.encode() + content)
        _traces(path)


CELLS = st.text(alphabet='0123456789-+.:eTZ nif"', max_size=24)


@given(HEADERS, st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=3))
def test_any_cells_are_a_trace_or_none(header: str, lines: list[tuple[str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "file"
        path.write_text(header + "\n".join(map(",".join, lines)))
        _traces(path)


@given(
    st.dictionaries(
        st.sampled_from([*LLAMA, "n_embd", "rope_scaling", "rope_parameters", "quantization_config"]), VALUES
    )
)
def test_any_config_is_taken_or_refused(config: dict[str, Any]) -> None:
    with suppress(UserError):
        describe(Model(config=LLAMA | config))


@given(BYTES | VALUES.map(lambda value: json.dumps(value).encode()), BYTES)
def test_any_bytes_in_a_checkpoint(content: bytes, weights: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        (path / "config.json").write_bytes(content)
        with suppress(UserError):
            describe(Model(path=path))
        (path / "model.safetensors.index.json").write_bytes(content)
        with suppress(UserError):
            check_weights(path, LLAMA)
        (path / "model.safetensors").write_bytes(weights)
        with pytest.raises(UserError):
            tensor_files(path)


@settings(max_examples=60)
@given(BYTES | VALUES.map(lambda value: json.dumps(value).encode()), BYTES)
def test_any_bytes_in_a_run_directory(content: bytes, other: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        run = RunDir(Path(directory))
        for path in (run.record, run.progress, run.report, run.successor):
            path.write_bytes(content)
        attempt = run.path / "attempts" / "0"
        attempt.mkdir(parents=True)
        (attempt / "end.json").write_bytes(other)
        assert read_progress(run) is None or content.strip()
        with suppress(UserError):
            read_report(run)
        with suppress(UserError):
            run_state(run, run.read_record())
        for each in attempts(run.path):
            with suppress(UserError):
                assert each.ended is None or other


RECORD = msgspec.to_builtins(RunRecord("run", "local", 1.0, ["lemix"], "elsewhere", "me", "9.0", 3))


@given(st.sampled_from(sorted(RECORD)), NUMBERS | VALUES)
def test_a_run_whose_record_has_any_value_is_listed_or_told(key: str, value: Any) -> None:
    with tempfile.TemporaryDirectory() as directory:
        run = RunDir(Path(directory))
        run.record.write_text(json.dumps(RECORD | {key: value}))
        with suppress(UserError):
            _print_rows([_row(run, run.read_record(), "RUNNING")])


REPORT = summarise(
    RunRecords(RunFacts("p", "emulated", 1, 2, [1.0], 1.0, 1.0, 0), [], [ServedTask("a", "lost", 0.0, 1)], [])
)
SECTIONS = [(key,) for key in REPORT] + [
    (key, inside) for key, section in REPORT.items() if isinstance(section, dict) for inside in section
]


@given(st.sampled_from(SECTIONS), NUMBERS | VALUES)
def test_a_report_with_any_value_is_shown_or_told(path: tuple[str, ...], value: Any) -> None:
    report = copy.deepcopy(REPORT)
    section = report if len(path) == 1 else report[path[0]]
    section[path[-1]] = value
    with tempfile.TemporaryDirectory() as directory, suppress(UserError):
        Console(file=io.StringIO()).print(render_report(RunDir(Path(directory)), report))
