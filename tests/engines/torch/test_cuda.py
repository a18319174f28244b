"""The torch engine on a GPU: `pytest -m cuda`."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lemix_hpc.config.training_section import Training
from lemix_hpc.engines.protocol import MicroBatch, Payload, ServeSequence
from lemix_hpc.engines.torch import build
from lemix_hpc.engines.torch.attention import causal_attention
from lemix_hpc.engines.torch.build import build_stage
from lemix_hpc.engines.torch.optimizer import StageOptimizer
from lemix_hpc.engines.torch.payloads import Wire
from lemix_hpc.engines.torch.training_queue import CudaStream, OneAhead
from tests.engines.torch.conftest import MakePipeline, Pipeline, TinyRecipe, finish
from tests.engines.torch.test_captured_blocks import MODES as MODES_OF_RELEASE
from tests.engines.torch.test_training import texts, train

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = "cuda:0"
MODES = [
    pytest.param(kind, zero, offload, id=f"{kind}-zero-{zero}{'-offload' * offload}".removeprefix("torch."))
    for kind in (torch.float32, torch.bfloat16)
    for zero, offload in ((0, False), (1, False), (1, True))
]


@pytest.mark.parametrize("cuda_aware", [False, True])
@pytest.mark.parametrize("family", ["llama-tied", "mistral", "gpt2"])
def test_the_same_scores_and_tokens_as_on_the_cpu(
    family: str,
    cuda_aware: bool,
    tiny_recipe: TinyRecipe,
    pipeline: MakePipeline,
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = tiny_recipe(family, 2)
    known = pipeline(recipe)
    monkeypatch.setattr(build, "sends_device_memory", lambda _engine, _device: cuda_aware)
    node = pipeline(recipe, GPU)
    expected = [result.nll for result in known.score(*prompts)]
    assert [result.nll for result in node.score(*prompts)] == pytest.approx(expected, rel=1e-3)
    sequences = [ServeSequence(i, len(p), 0, True, p) for i, p in enumerate(prompts)]
    for length in range(5):
        answers, found = known.serve(sequences), node.serve(sequences)
        assert [result.next_token for result in found] == [result.next_token for result in answers]
        sequences = [
            ServeSequence(i, 1, len(p) + length, True, [int(answer.next_token or 0)])
            for i, (p, answer) in enumerate(zip(prompts, answers, strict=True))
        ]


@pytest.mark.parametrize("release", ["sync", "async"])
@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2"])
def test_training_takes_the_course_that_it_takes_on_the_cpu(
    family: str, release: str, tiny_recipe: TinyRecipe, pipeline: MakePipeline
) -> None:
    recipe = tiny_recipe(family, 2, release=release, learning_rate=3e-3, gradient_clipping=0.7)
    known, data = pipeline(recipe), texts(8, 2)
    losses = train(known, data)
    node = pipeline(recipe, GPU)  # DeepSpeed has one kind of device at a time
    assert train(node, data) == pytest.approx(losses, rel=2e-3)
    assert node.norms == pytest.approx(known.norms, rel=2e-2)


@pytest.mark.parametrize("mode", MODES_OF_RELEASE, ids=lambda mode: "-".join(mode.values()))
@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
def test_captured_graphs_learn_what_kernels_do(
    family: str, mode: dict[str, Any], tiny_recipe: TinyRecipe, pipeline: MakePipeline
) -> None:
    shape = {"micro_batch_size": 2, "sequence_length": 16, "learning_rate": 3e-3, "gradient_clipping": 0.7}
    recipes = [tiny_recipe(family, 2, cuda_graphs=graphs, **shape, **mode) for graphs in (False, True)]
    (known, node), data = (pipeline(recipe, GPU) for recipe in recipes), texts(8, 3)
    assert train(node, data) == pytest.approx(train(known, data), rel=1e-4)
    assert node.norms == pytest.approx(known.norms, rel=1e-3)


def test_bfloat16_training_learns(tiny_recipe: TinyRecipe) -> None:
    stage = build_stage(tiny_recipe("llama", dtype="auto", learning_rate=3e-3), stage=0, device=GPU)
    tokens = (torch.arange(64, dtype=torch.int32) % 31).numpy().tobytes()
    losses = []
    for group in range(10):
        losses.append(finish(stage.forward(MicroBatch(group, group, 0, 1, 2, 32, tokens, tokens), None)))
        finish(stage.backward(group, None))
        finish(stage.prepare(group, finish(stage.seal(group, None)).square_norm ** 0.5, None))
        finish(stage.publish(group))
    stage.close()
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(("kind", "zero", "offload"), MODES)
def test_steps_are_torchs_own_and_the_weights_stay_in_their_place(
    kind: torch.dtype, zero: Literal[0, 1], offload: bool
) -> None:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(1300, 700), nn.Linear(700, 77)).to(GPU, kind)
    parameters = list(module.parameters())
    home = "cpu" if offload else GPU
    masters = [parameter.detach().to(home).float().clone() for parameter in parameters]
    reference = torch.optim.AdamW(masters, lr=1e-2, weight_decay=0.1, fused=True)
    plain: dict[str, Any] = {"weight_decay": 0.1, "no_weight_decay": [], "gradient_clipping": None}
    training = Training(learning_rate=1e-2, zero_stage=zero, offload_optimizer=offload, **plain)
    mine = StageOptimizer(module, training)
    places = [parameter.data_ptr() for parameter in parameters]
    for _ in range(3):
        grads = [0.01 * torch.randn(parameter.shape, device=GPU) for parameter in parameters]
        for master, grad in zip(masters, grads, strict=True):
            master.grad = grad.to(home).clone()
        reference.step()
        before = [parameter.detach().clone() for parameter in parameters]
        for _ in mine.prepare(grads, math.sqrt(sum(float(grad.square().sum()) for grad in grads))):
            assert all(map(torch.equal, parameters, before)), "published too early"
        mine.publish()
        expected = [master.to(GPU, kind) for master in masters]
        assert all(map(torch.equal, parameters, expected))
    assert [parameter.data_ptr() for parameter in parameters] == places
    mine.close()


@pytest.mark.parametrize("device_buffers", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_comes_back_from_a_received_buffer(dtype: torch.dtype, device_buffers: bool) -> None:
    wire = Wire(torch.device(GPU), device_buffers=device_buffers)
    sent = torch.randn(2, 3, 5, device=GPU).to(dtype)
    payload = wire.payload(sent)
    received = wire.buffer(payload.nbytes)
    received[:] = payload.data
    assert torch.equal(wire.tensor(Payload(payload.shape, payload.dtype, received)), sent)


def test_nothing_that_was_queued_before_writes_into_what_is_received() -> None:
    """MPI knows of no streams: it writes into a buffer at once, though kernels with freed temporaries may be queued."""
    wire, nbytes = Wire(torch.device(GPU), device_buffers=True), 1 << 26
    assert damaged(nbytes, lambda: torch.empty(nbytes, dtype=torch.uint8, device=GPU)), "the test can tell"
    assert not damaged(nbytes, lambda: wire.buffer(nbytes))


def damaged(nbytes: int, allocate: Callable[[], Any]) -> bool:
    pattern = torch.arange(nbytes, device=GPU).to(torch.uint8)
    other = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    for cycles in (1, 100_000_000):  # the first time kernels are loaded and memory is got, which waits; then some 50 ms
        torch.cuda.synchronize()
        torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
        for value in range(3):
            temporary = torch.full((nbytes,), value, dtype=torch.uint8, device=GPU)
            del temporary
        buffer = allocate()
        with torch.cuda.stream(other):  # as MPI copies
            buffer.copy_(pattern)
        torch.cuda.synchronize()
        whole = torch.equal(buffer, pattern)
        del buffer
    return not whole


@pytest.mark.parametrize("late", ["training", "serving"])
@pytest.mark.parametrize("release", ["sync", "async"])
def test_a_stream_that_is_late_changes_nothing(
    release: str,
    late: str,
    tiny_recipe: TinyRecipe,
    pipeline: MakePipeline,
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Requests come between any two pieces of training, and one of the two streams lags behind its launches."""
    recipe = tiny_recipe("llama-tied", 2, release=release, learning_rate=3e-3)
    data = texts(3, 2)

    def course(node: Pipeline) -> tuple[list[float], list[float]]:
        scores: list[float] = []

        def serve() -> None:
            scores.extend(result.nll for result in node.score(prompts[0]))

        return train(node, data, between=serve), scores

    losses, _ = course(pipeline(recipe, GPU))  # this also loads all kernels
    inside, join = CudaStream.inside, CudaStream.join

    @contextmanager
    def slow(stream: CudaStream) -> Iterator[None]:
        with inside(stream):
            torch.cuda._sleep(1_000_000)  # type: ignore[no-untyped-call]
            yield

    def behind(stream: CudaStream) -> None:
        join(stream)
        torch.cuda._sleep(20_000_000)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(CudaStream, *(("inside", slow) if late == "training" else ("join", behind)))
    node = pipeline(recipe, GPU)
    assert isinstance(node.stages[0]._queue, OneAhead)
    again, scores = course(node)
    assert again == pytest.approx(losses, rel=1e-4)
    known = pipeline(recipe)
    assert scores[:1] == pytest.approx([result.nll for result in known.score(prompts[0])], rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("new", [1, 64])
def test_grouped_heads_get_a_fused_kernel(dtype: torch.dtype, new: int) -> None:
    query = torch.randn(1, 8, new, 64, dtype=dtype, device=GPU)
    key, value = torch.randn(2, 1, 2, 64, 64, dtype=dtype, device=GPU)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
        found = causal_attention(query, key, value, 0.125, None)
    expected = causal_attention(query.cpu().float(), key.cpu().float(), value.cpu().float(), 0.125, None)
    torch.testing.assert_close(found.cpu().float(), expected, rtol=2e-2, atol=2e-2)
