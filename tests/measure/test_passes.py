from collections.abc import Iterator
from typing import NoReturn

import pytest
import torch

from lemix_hpc.config.recipe import Engine, Model, Nodes, Recipe
from lemix_hpc.config.training_section import Training
from lemix_hpc.engines.meter import HostMeter
from lemix_hpc.engines.torch.build import build_stage
from lemix_hpc.engines.torch.stage import TorchStage
from lemix_hpc.measure.passes import StagePasses
from lemix_hpc.policy.latency import Shape
from lemix_hpc.policy.rules import Release
from lemix_hpc.profiling.grid import GridPoint
from tests.engines.torch.conftest import TINY, VOCAB
from tests.measure.conftest import LATENCY, SmallStage, stage_passes

HUGE = 10**13  # tokens whose activations have no place in any address space


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "DS_ACCELERATOR", "DS_LOG_LEVEL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def real_stage(stage: int, stages: int, *, model: str = "llama", release: Release = "async") -> TorchStage:
    recipe = Recipe(
        nodes=Nodes(stages=stages),
        model=Model(config=TINY[model]),
        engine=Engine(dtype="float32"),
        training=Training(release=release),
    )
    return build_stage(recipe, stage=stage, device="cpu")


def passes_of(engine: TorchStage, stage: int, stages: int, *, generate: bool = False) -> StagePasses:
    first, last = stage == 0, stage == stages - 1
    meter = HostMeter()
    return StagePasses(engine, meter, first=first, last=last, vocabulary=VOCAB, generate=generate, warm_up=1, repeats=2)


@pytest.mark.parametrize("generate", [False, True])
@pytest.mark.parametrize(("stage", "stages"), [(0, 1), (0, 3), (1, 3), (2, 3)])
def test_every_stage_can_be_measured_by_itself(stage: int, stages: int, generate: bool) -> None:
    engine = real_stage(stage, stages)
    passes = passes_of(engine, stage, stages, generate=generate)
    for point in (GridPoint("forward", 2, 8), GridPoint("decode", 2, 1, 16), GridPoint("backward", 2, 8)):
        measured = passes.measure(point)
        assert measured.fits
        assert set(measured.seconds) == ({"backward", "step"} if point.kind == "backward" else {point.kind})
        assert all(len(times) >= 2 and min(times) > 0 for times in measured.seconds.values())
        assert measured.peak > 0
    assert not engine.holds_graph
    assert engine._cache._buffers == {}
    engine.close()


@pytest.mark.parametrize(("stage", "release"), [(0, "async"), (0, "sync"), (1, "async")])
def test_tied_weights_have_a_made_up_gradient(stage: int, release: Release) -> None:
    engine = real_stage(stage, 2, model="llama-tied", release=release)
    measured = passes_of(engine, stage, 2).measure(GridPoint("backward", 1, 8))
    assert set(measured.seconds) == {"backward", "step"}
    engine.close()


def test_what_the_allocator_refuses_is_a_point_that_does_not_fit() -> None:
    engine = real_stage(1, 2)
    passes = passes_of(engine, 1, 2)
    measured = passes.measure(GridPoint("forward", 1, HUGE))
    assert (measured.fits, measured.seconds) == (False, {})
    assert passes.measure(GridPoint("forward", 1, 8)).fits
    engine.close()


def test_a_backward_that_does_not_fit_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = real_stage(0, 2)
    passes = passes_of(engine, 0, 2)
    add, calls = engine._gradients.add, []

    def short_of_memory(group: int, parameter: torch.Tensor, grad: torch.Tensor) -> None:
        calls.append(group)
        if len(calls) == 3:
            raise MemoryError
        add(group, parameter, grad)

    with monkeypatch.context() as patch:
        patch.setattr(engine._gradients, "add", short_of_memory)
        assert not passes.measure(GridPoint("backward", 1, 8)).fits
    assert not engine.holds_graph
    assert engine._gradients._sums == {}
    assert passes.measure(GridPoint("backward", 1, 8)).fits
    engine.close()


def test_mistakes_are_not_taken_for_a_lack_of_memory() -> None:
    class Broken(SmallStage):
        def serve(self, *_: object) -> NoReturn:
            raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        stage_passes(Broken(0, 100)).measure(GridPoint("forward", 1, 8))


def test_short_passes_are_repeated_more_often_within_bounds() -> None:
    measured = stage_passes(SmallStage(0, 100), repeats=3).measure(GridPoint("forward", 1, 8))
    assert 3 <= len(measured.seconds["forward"]) <= 30
    assert min(measured.seconds["forward"]) >= LATENCY.forward[0].seconds(Shape(0, 0))
