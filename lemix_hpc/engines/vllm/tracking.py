"""What is known of each task while vLLM serves it: tokens, times, and the weight versions that it saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.engine.async_llm import AsyncLLM

from lemix_hpc.engines.vllm.request_ids import task_of
from lemix_hpc.engines.vllm.scheduler import VERSIONS


@dataclass(slots=True)
class Served:
    """A task so far; one with several prompts or choices is the sum of them. `first_token` in seconds of the run.

    `dead_end`: it came where its grammar lets nothing follow: the one thing that vLLM ends a request of ours with an error for.
    """

    versions: tuple[int, int] | None = None
    first_token: float | None = None
    output: list[int] = field(default_factory=list)
    dead_end: bool = False


class Tracker:
    """Reads along what the engine process hands out, whoever asked for it and in whatever portions."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._tasks: dict[int, Served] = {}

    def follow(self, llm: AsyncLLM) -> None:
        """From now on every output of this engine is noted before anybody gets it."""
        process = llm.output_processor.process_outputs

        def noted(outputs: list[EngineCoreOutput], *args: Any, **kwargs: Any) -> Any:
            self._note(outputs)
            return process(outputs, *args, **kwargs)

        llm.output_processor.process_outputs = noted

    def of(self, task: int) -> Served:
        """A task so far; it is remembered until `pop`."""
        return self._tasks.setdefault(task, Served())

    def waits(self, task: int) -> bool:
        """Whether it is there and no batch has had it yet, as far as is known."""
        served = self._tasks.get(task)
        return served is not None and served.versions is None and served.first_token is None

    def pop(self, task: int) -> Served:
        return self._tasks.pop(task, None) or Served()

    def _note(self, outputs: Sequence[EngineCoreOutput]) -> None:
        for output in outputs:
            served = self._tasks.get(task_of(output.request_id))
            if served is None:
                continue  # nobody waits for it any more
            # Meant for the transfer of caches between engines, of which there is none here.
            first, last = (output.kv_transfer_params or {}).get(VERSIONS) or served.versions or (0, 0)
            output.kv_transfer_params = None
            before = served.versions or (first, last)
            served.versions = (min(before[0], first), max(before[1], last))
            if output.new_token_ids and served.first_token is None:
                served.first_token = self._now()
            served.output += output.new_token_ids
            served.dead_end = served.dead_end or output.finish_reason == FinishReason.ERROR
