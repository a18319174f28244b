"""Training beside serving, on a stand-in for a device: what is launched is done later, one piece at each look at it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from lemix_hpc.engines.protocol import Work
from lemix_hpc.engines.torch.training_queue import OneAhead
from tests.engines.torch.conftest import MakePipeline, TinyRecipe, finish
from tests.engines.torch.test_training import texts, train


class SlowStream:
    """`launch` what the device is to do; it does one thing whenever somebody asks how far it is."""

    def __init__(self) -> None:
        self.entered = False
        self.joined = 0
        self.most = 0
        self._todo: deque[Callable[[], None]] = deque()
        self._launched = self._done = 0

    @contextmanager
    def inside(self) -> Iterator[None]:
        assert not self.entered
        self.entered = True
        try:
            yield
        finally:
            self.entered = False

    def launch(self, call: Callable[[], None]) -> None:
        assert self.entered, "launched into serving's stream"
        self._todo.append(call)
        self._launched += 1
        self.most = max(self.most, len(self._todo))

    def mark(self) -> SlowMark:
        return SlowMark(self, self._launched)

    def reached(self, place: int) -> bool:
        if self._todo:
            self._todo.popleft()()
            self._done += 1
        return self._done >= place

    def join(self) -> None:
        self.joined += 1


class SlowMark:
    def __init__(self, stream: SlowStream, place: int) -> None:
        self._stream = stream
        self._place = place

    def query(self) -> bool:
        return self._stream.reached(self._place)


def pieces(stream: SlowStream, count: int, written: list[int]) -> Work[list[int]]:
    for number in range(count):
        stream.launch(lambda number=number: written.append(number))  # type: ignore[misc]
        if number < count - 1:
            yield
    return written


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_piece_is_launched_while_the_one_before_runs_and_the_result_is_read_when_all_are_done(count: int) -> None:
    stream = SlowStream()

    def read(written: list[int]) -> list[int]:
        assert stream.entered
        return list(written)

    def serve() -> None:
        assert not stream.entered, "what is served in between goes into its own stream"

    assert finish(OneAhead(stream).work(pieces(stream, count, []), read), serve) == list(range(count))
    assert stream.most == min(count, 2)


def test_work_that_is_dropped_drops_what_it_began_and_a_failure_comes_out() -> None:
    stream, ended = SlowStream(), []

    def begun() -> Work[None]:
        try:
            yield
            raise ValueError("of a piece")
        finally:
            ended.append(True)

    dropped = OneAhead(stream).work(begun(), lambda _: None)
    next(dropped)
    dropped.close()
    assert ended == [True]
    with pytest.raises(ValueError, match="of a piece"):
        finish(OneAhead(stream).work(begun(), lambda _: None))
    assert not stream.entered


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which operations run, and whether in training's stream."""

    def __init__(self, stream: SlowStream) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stream = stream
        self.seen: list[tuple[bool, int]] = []

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append((self._stream.entered, self._stream.joined))
        return call(*args, **(kwargs or {}))


@pytest.mark.parametrize("release", ["sync", "async"])
@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_all_of_training_is_launched_into_its_stream_and_weights_change_behind_it(
    family: str, release: str, tiny_recipe: TinyRecipe, pipeline: MakePipeline
) -> None:
    recipe, data = tiny_recipe(family, 2, release=release, learning_rate=3e-3), texts(2, 2)
    expected = train(pipeline(recipe), data)
    node = pipeline(recipe)
    watches: list[Watch] = []
    for stage in node.stages:
        stream = SlowStream()
        stage._queue = OneAhead(stream)
        watched(stage, watches, stream)
    assert train(node, data) == expected
    assert any(watch.seen for watch in watches)


def watched(stage: Any, watches: list[Watch], stream: SlowStream) -> None:
    """Look at every operation of a stage's training."""
    forward, backward, seal, prepare, publish = (
        getattr(stage, name) for name in ("forward", "backward", "seal", "prepare", "publish")
    )

    def training(work: Work[Any]) -> Work[Any]:
        while True:
            with Watch(stream) as watch:
                watches.append(watch)
                try:
                    next(work)
                except StopIteration as end:
                    return end.value
                finally:
                    assert all(inside for inside, _ in watch.seen)
            yield

    def published(group: int) -> Work[None]:
        before = stream.joined
        with Watch(stream) as watch:
            yield from publish(group)
        assert watch.seen
        assert not any(inside for inside, _ in watch.seen)
        assert all(joined > before for _, joined in watch.seen)

    stage.forward = lambda *arguments: training(forward(*arguments))
    stage.backward = lambda *arguments: training(backward(*arguments))
    stage.prepare = lambda *arguments: training(prepare(*arguments))
    stage.seal = lambda *arguments: training(seal(*arguments))
    stage.publish = published
