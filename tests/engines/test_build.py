"""Devices, and engines by their kind: each is built through the registry, and brings in only what it needs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lemix_hpc.config.engine_kinds import ENGINE_KINDS
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import load_recipe
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines import emulated as emulated_engine
from lemix_hpc.engines.build import Device, build_engine, build_meter, check_sharing, choose_device
from lemix_hpc.engines.emulated import EmulatedStage
from lemix_hpc.engines.meter import HostMeter, finish
from lemix_hpc.engines.protocol import Payload, ServeBatch, ServeSequence
from lemix_hpc.engines.torch import meter as cuda
from tests.runtime.conftest import A100, tiny_llama

CPU = Device("cpu")
GPU = Device("cuda:0", "GPU-1")
COEFFICIENTS = """\
schema: 1
hardware: any
model: none
dtype: float32
layers: 4
per_layer: {forward: {form: affine-quadratic, a: %s, b: 0.0, c: 0.0}}
valid: {max_length: 4096}
provenance: {source: made up}
"""


def recipe(kind: str, **sections: Any) -> Recipe:
    """Two stages of a tiny Llama."""
    engine = {"kind": kind, "device": "cpu"} | sections.pop("engine", {})
    return Recipe.model_validate(
        {"nodes": {"stages": 2}, "model": {"config": tiny_llama()}, "engine": engine, **sections}
    )


def served(engine: Any, hidden: Payload | None = None, tokens: int = 3) -> Any:
    return finish(engine.serve(ServeBatch(0, [ServeSequence(7, tokens, 0, False, [5, 6, 7])]), hidden))


def test_a_stage_that_computes_takes_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for kind in ("torch", "vllm"):
        assert choose_device(recipe(kind), 1) == CPU
        with pytest.raises(UserError, match=r"engine\.device: cuda, but no GPU is visible to this rank"):
            choose_device(recipe(kind, engine={"device": "cuda"}), 0)


def test_a_gpu_is_known_by_its_own_number(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        uuid = "0123-45"

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _name: Properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _name: "NVIDIA H100")
    assert choose_device(recipe("torch", engine={"device": "auto"}), 3) == Device("cuda:1", "0123-45", "NVIDIA H100")


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_a_stage_that_does_not_compute_needs_no_device(device: str) -> None:
    assert choose_device(recipe("emulated", engine={"device": device}), 0) == Device("emulated")


def test_gpus_are_shared_only_when_the_recipe_says_so() -> None:
    one, other = Device("cuda:0", "GPU-1"), Device("cuda:0", "GPU-2")
    check_sharing(Recipe(), [None, one, other])
    check_sharing(Recipe(), [None, CPU, CPU])
    with pytest.raises(UserError, match=r"2 stage ranks on this host share 1 GPUs.*engine.share_devices: true"):
        check_sharing(Recipe(), [one, Device("cuda:1", "GPU-1")])
    check_sharing(Recipe.model_validate({"engine": {"share_devices": True}}), [one, one])


def test_an_emulated_stage_has_the_times_of_its_nodes_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow = tmp_path / "fast.yaml", tmp_path / "slow.yaml"
    fast.write_text(COEFFICIENTS % 0.25)
    slow.write_text(COEFFICIENTS % 2.0)
    kinds = [{"count": 1}, {"count": 2, "coefficients": slow}]
    emulated = recipe(
        "emulated", engine={"coefficients": fast}, nodes={"count": 3, "stages": 2, "kinds": kinds}, model={}
    )
    slept: list[float] = []

    def untimed(*given: Any, **named: Any) -> EmulatedStage:
        return EmulatedStage(*given, **(named | {"clock": lambda: 0.0, "sleep": slept.append}))

    monkeypatch.setattr(emulated_engine, "EmulatedStage", untimed)
    for node in range(3):
        stage = build_engine(emulated, node=node, stage=1, device=choose_device(emulated, 0))
        assert isinstance(stage, EmulatedStage)
        assert [result.request for result in served(stage)] == [7]
    assert slept == [2 * 0.25, 2 * 2.0, 2 * 2.0], "two of four layers each"


def test_stages_of_torch_make_a_pipeline() -> None:
    first, last = (build_engine(recipe("torch"), node=0, stage=stage, device=CPU) for stage in (0, 1))
    hidden = served(first)
    assert hidden.shape[-1] == 64
    [result] = served(last, hidden)
    assert (result.request, result.scored) == (7, 2)
    assert result.nll == pytest.approx(2 * 5.55, abs=0.5), "nearly uniform over 257 tokens"
    assert not first.orders()


def test_an_emulated_run_loads_neither_torch_nor_vllm() -> None:
    """Nor numba, which is the scheduler's alone: vLLM looks into every module that is loaded, and fails on numba's."""
    script = f"""
import sys
import lemix_hpc.runtime.main
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.build import build_engine, build_meter, choose_device
recipe = Recipe.model_validate({{"engine": {{"kind": "emulated", "coefficients": {str(A100)!r}}}}})
device = choose_device(recipe, 0)
build_engine(recipe, node=0, stage=0, device=device)
build_meter(device)
print([name for name in ("torch", "vllm", "transformers", "numba") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("kind", ENGINE_KINDS)
def test_the_builder_of_every_engine_is_found_without_what_it_builds_with(kind: str) -> None:
    """In a process of its own: this one may have loaded torch and vLLM for other tests."""
    script = f"""
import importlib, inspect, sys
package = importlib.import_module({ENGINE_KINDS[kind].package!r})
print(*inspect.signature(package.build_stage).parameters)
print([name for name in ("torch", "vllm", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "recipe node stage device meeting\n[]\n"


def test_vllm_refuses_to_start_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"vLLM cannot be imported here.*or set engine\.kind: torch"):
        build_engine(recipe("vllm"), node=0, stage=0, device=CPU, meeting=tmp_path)


def test_an_unknown_engine_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("engine: {kind: emulate}\n")
    with pytest.raises(UserError) as refused:
        load_recipe(path)
    assert str(refused.value) == (
        f"{path}:1: engine.kind: expected one of 'emulated', 'torch' or 'vllm', found 'emulate'; did you mean 'emulated'?"
    )


@pytest.mark.parametrize("value", [3, True, None, ["torch"], {"torch": 1}])
def test_an_engine_is_named_by_text(tmp_path: Path, value: object) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"engine: {{kind: {value if value is not None else 'null'}}}\n")
    with pytest.raises(UserError, match=r"engine\.kind: expected one of 'emulated', 'torch' or 'vllm', found "):
        load_recipe(path)


def test_work_is_measured_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(build_meter(CPU), HostMeter)
    assert isinstance(build_meter(Device("emulated")), HostMeter)
    monkeypatch.setattr(cuda, "CudaMeter", lambda name: f"meter of {name}")
    assert build_meter(GPU) == "meter of cuda:0"
