"""How many requests had which outcome, and what was done for whom."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from lemix_hpc.policy.classes import ServiceClass
from lemix_hpc.records.schema import Outcome, ServedTask


class KeyUse(NamedTuple):
    """What was done for one key: requests with an outcome, tokens of their prompts and generated ones."""

    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0

    def with_request(self, prompt_tokens: int, output_tokens: int) -> KeyUse:
        return KeyUse(self.requests + 1, self.prompt_tokens + prompt_tokens, self.output_tokens + output_tokens)


class Tally(msgspec.Struct):
    """Requests by outcome; those of each class, and how many of them finished; what was done for each client's key."""

    outcomes: dict[Outcome, int] = {}
    received: dict[ServiceClass, int] = {}
    finished: dict[ServiceClass, int] = {}
    keys: dict[str, KeyUse] = {}

    def add(self, task: ServedTask) -> None:
        """A request has its outcome."""
        finished = task.outcome == "finished"
        self.outcomes[task.outcome] = self.outcomes.get(task.outcome, 0) + 1
        self.received[task.service] = self.received.get(task.service, 0) + 1
        self.finished[task.service] = self.finished.get(task.service, 0) + finished
        if task.key is not None:
            before = self.keys.get(task.key, KeyUse())
            self.keys[task.key] = before.with_request(task.prompt_tokens, len(task.output))

    @property
    def total(self) -> int:
        return sum(self.outcomes.values())

    def copy(self) -> Tally:
        return Tally(self.outcomes.copy(), self.received.copy(), self.finished.copy(), self.keys.copy())
