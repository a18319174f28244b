from dataclasses import replace
from pathlib import Path

import pytest

from lemix_hpc.measure.measurement_rows import OtherRow, PassRow
from lemix_hpc.measure.profiler import COPY_BYTES
from lemix_hpc.measure.result import links, stage_memory, write_result
from lemix_hpc.measure.subject import Subject
from lemix_hpc.profiling.coefficients import load_coefficients
from tests.measure.conftest import STAGES, RunJob

SUBJECT = Subject("Some Model/v1", "float32", 4, 2, None)


def row(kind: str, batch: int, length: int, peak: int, *, context: int = 0, ms: str = "1") -> PassRow:
    return PassRow(0, kind, batch, length, context, ms, ms, ms, 3, peak, 0.1)


def test_memory_is_told_by_what_grows_with_tokens() -> None:
    rest = 5_000
    passes = [row("backward", batch, length, rest + 300 * batch * length) for batch in (1, 2) for length in (8, 64)]
    passes += [row("decode", 2, 1, rest + 20 * 2 * (context + 1), context=context) for context in (16, 64, 256)]
    passes.append(row("backward", 8, 64, 0, ms="oom"))
    memory = stage_memory(passes, [OtherRow(0, "at rest", rest, "", "", "", 1)])
    assert memory.weights_bytes == rest
    assert memory.activation_bytes_per_token == pytest.approx(300)
    assert memory.kv_bytes_per_token == pytest.approx(20)


def test_an_engine_that_takes_its_cache_whole_says_what_a_token_takes() -> None:
    passes = [row("decode", 2, 1, 5_000, context=context) for context in (16, 64)]
    rest = [OtherRow(0, kind, nbytes, "", "", "", 1) for kind, nbytes in (("at rest", 5_000), ("cached token", 64))]
    assert stage_memory(passes, rest, 256).kv_bytes_per_token == 64
    assert stage_memory(passes, rest, 256).input_bytes_per_token == 256


def test_files_of_another_engine_have_a_name_of_their_own() -> None:
    assert replace(SUBJECT, engine="vllm").file_name == f"{SUBJECT.file_name}-vllm" == "some-model-v1-float32-vllm"


def test_memory_without_training_has_no_activations() -> None:
    memory = stage_memory([], [OtherRow(0, "at rest", 7, "", "", "", 1)])
    assert memory.activation_bytes_per_token is None


def test_links_are_medians_over_stages() -> None:
    rows = [OtherRow(s, "host to device", COPY_BYTES, ms, ms, ms, 5) for s, ms in enumerate(("4", "8", "2"))]
    rows += [OtherRow(0, "message", 1, "0.02", "", "", 9), OtherRow(0, "message", 1 << 24, "10", "", "", 9)]
    found = links(rows)
    assert found.host_to_device_gb_s == pytest.approx(COPY_BYTES / 4e-3 / 1e9)
    assert found.device_to_host_gb_s is None
    assert found.message_latency_s == pytest.approx(2e-5)
    assert found.message_gb_s == pytest.approx((1 << 24) / 10e-3 / 1e9)


def test_the_file_is_found_by_hardware_and_model_and_gives_the_times_back(run_job: RunJob, tmp_path: Path) -> None:
    run_job()
    write_result(SUBJECT, "Some CPU (R) @ 3 GHz", STAGES, tmp_path, tmp_path / "out", {"source": "a test"})
    directory = tmp_path / "out" / "some-cpu-r-3-ghz"
    names = {path.name for path in directory.iterdir()}
    stem = "some-model-v1-float32-s2"
    assert names == {f"{stem}.yaml", f"{stem}.csv", f"{stem}-others.csv"}
    file = load_coefficients(directory / f"{stem}.yaml")
    assert (file.model, file.layers, file.provenance["source"]) == ("Some Model/v1", 4, "a test")
    assert all(times.step_s is not None and times.memory is not None for times in file.stages)
    assert file.latency(STAGES).stages == STAGES
    assert all(times.residuals.forward.points == 14 and times.residuals.backward.points == 8 for times in file.stages)
