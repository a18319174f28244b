"""What the first seconds of a run make of what its probes took."""

from collections.abc import Sequence

import pytest

from lemix_hpc.config.recipe import Engine, Model, Nodes, Recipe
from lemix_hpc.config.training_section import Training
from lemix_hpc.policy.latency import Affine, Shape
from lemix_hpc.runtime.scheduler.warm_up import DECODED, REPEATS, Probe, ProbeTimes, kinds_of, probes, warm_up
from lemix_hpc.runtime.transport.messages import WorkSpan
from lemix_hpc.runtime.transport.rank_layout import Layout
from lemix_hpc.workload.demand import Demand
from lemix_hpc.workload.tasks import Request
from tests.runtime.conftest import tiny_llama

BETWEEN_S = 0.002


def recipe(nodes: int, *, training: bool) -> Recipe:
    section = Training(sequence_length=100) if training else None
    return Recipe(
        nodes=Nodes(count=nodes, stages=2), model=Model(config=tiny_llama(2)), engine=Engine(), training=section
    )


def span(stage: int, start: float, end: float, node: int = 0) -> WorkSpan:
    return WorkSpan(node, stage, "serve", [-1], start, end, version=0, batch=1, complete=True)


def request(prompt: int, output: int) -> Request:
    return Request("r0", 0.0, prompt, output)


def test_each_length_goes_through_all_nodes_at_once_and_is_measured_alone_on_the_first() -> None:
    found = list(probes(recipe(3, training=False), Demand.of([request(20, 0)]), 1000))
    warming = [together for together in found if not together[0].measured]
    assert [[(probe.node, probe.request.prompt) for probe in together] for together in warming] == [
        [(node, length) for node in range(3)] for length in (8, 16, 20)
    ], "as many rounds as lengths, whatever the number of nodes"
    measured = [[(probe.node, probe.request.prompt) for probe in together] for together in found[3:]]
    assert measured == [[(0, 8)], [(0, 16)], [(0, 20)]] * REPEATS
    tasks = [probe.request.task for together in found for probe in together]
    assert len(set(tasks)) == len(tasks)
    assert all(task < 0 for task in tasks) and all(probe.request.output == 0 for [probe, *_] in found)


def test_nodes_are_alike_if_their_stages_have_the_same_devices() -> None:
    layout = Layout(4, 2)
    ranks = ["", "H100", "H100", "", "A100", "H100", "", "H100", "H100", "", "H100", "A100"]
    assert kinds_of(layout.by_node(ranks)) == (0, 1, 0, 2)
    assert kinds_of(Layout(2, 1).by_node(["", "", "", ""])) == (0, 0)


def test_each_kind_of_nodes_is_measured_for_itself() -> None:
    """Nodes 1 and 3 have faster devices."""
    truth = {0: Affine(0.01, 1e-4, 0.0), 1: Affine(0.004, 3e-5, 0.0)}
    kinds, clock, alone = (0, 1, 0, 1), 0.0, []

    def run(together: Sequence[Probe]) -> tuple[float, Sequence[WorkSpan]]:
        nonlocal clock
        sent, spans = clock, []
        if together[0].measured:
            alone.append([probe.node for probe in together])
        for probe in together:
            for stage in (0, 1):
                seconds = truth[kinds[probe.node]].seconds(Shape.of((probe.request.prompt,)))
                spans.append(span(stage, clock, clock + seconds, probe.node))
                clock += seconds
        return sent, spans

    times = warm_up(recipe(4, training=False), Demand.of([request(64, 0)]), None, kinds, run)
    assert {tuple(nodes) for nodes in alone} == {(0,), (1,)}
    for kind, measured in enumerate(times):
        latency = measured.coefficients(hardware="h", model="m", dtype="float32", layers=2).latency(2)
        shape = Shape.of((30,))
        assert latency.forward_times(shape) == pytest.approx([truth[kind].seconds(shape)] * 2, rel=1e-3)


@pytest.mark.parametrize(
    ("output", "context", "longest"), [(0, 1000, 100), (0, 64, 64), (5, 64, 64 - DECODED), (5, None, 100)]
)
def test_probes_are_as_long_as_the_run_needs_and_the_engine_takes(
    output: int, context: int | None, longest: int
) -> None:
    found = list(probes(recipe(1, training=True), Demand.of([request(10, output)]), context))
    assert max(probe.request.prompt for [probe] in found) == longest
    assert {probe.request.output for [probe] in found} == {DECODED if output else 0}


def test_probes_of_an_engine_that_cuts_prompts_are_no_longer_than_its_batches() -> None:
    whole = recipe(1, training=True).model_copy(update={"engine": Engine(kind="vllm", max_batch_tokens=64)})
    found = list(probes(whole, Demand.of([request(500, 5)]), 1000))
    assert [probe.request.prompt for [probe] in found if not probe.measured] == [8, 16, 32, 64]


@pytest.mark.parametrize("output", [0, 5])
def test_stage_times_and_what_comes_besides_are_told_apart(output: int) -> None:
    times = ProbeTimes(2)
    truth = (Affine(0.01, 1e-4, 0.0), Affine(0.02, 2e-4, 0.0))
    clock = 5.0
    for [probe] in probes(recipe(1, training=False), Demand.of([request(64, output)]), None):
        sent, spans, prompt = clock, [], probe.request.prompt
        for done in range(max(1, probe.request.output)):
            shape = Shape.of((prompt,)) if done == 0 else Shape.of((1,), (prompt + done - 1,))
            clock += BETWEEN_S
            for stage in (0, 1):
                seconds = truth[stage].seconds(shape) * (1 if probe.measured else 3)  # cold at first
                spans.append(span(stage, clock, clock + seconds))
                clock += seconds
        times.add(probe, sent, spans[::-1])
    assert times.overhead == pytest.approx(BETWEEN_S)
    latency = times.coefficients(hardware="h", model="m", dtype="float32", layers=2).latency(2)
    for tokens in (8, 30, 64):
        shape = Shape.of((tokens,))
        assert latency.forward_times(shape) == pytest.approx([true.seconds(shape) for true in truth], rel=1e-3)


def test_passes_that_overlap_make_no_negative_overhead() -> None:
    times = ProbeTimes(1)
    [*_, [probe]] = probes(recipe(1, training=False), Demand.of([request(8, 0)]), None)
    times.add(probe, 1.0, [span(0, 0.9, 1.1)])
    assert times.overhead == 0.0
