"""Conversations: requests whose next turn waits for the answer to the one before, and carries it along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lemix_hpc.config.serving_section import Conversations
from lemix_hpc.workload.tasks import Request


def in_conversations(
    requests: Sequence[Request], conversations: Conversations, longest: int | None, rng: np.random.Generator
) -> tuple[Request, ...]:
    """Join every `turns` consecutive requests into a conversation; the last one may be shorter.

    A turn's prompt begins with all earlier turns, and is cut to its last `longest` tokens. The model's answers are not known
    in advance: where tokens matter, tokens of the earlier prompt take their place. `rng` draws the seconds between an
    answer and the next turn, exponential with mean `think_s`.
    """
    thinking = rng.exponential(conversations.think_s, size=len(requests)).tolist()
    joined: list[Request] = []
    for number, request in enumerate(requests):
        if number % conversations.turns == 0:
            joined.append(request)
            continue
        before = joined[-1]
        length = before.prompt_tokens + before.output_tokens + request.prompt_tokens
        kept = length if longest is None else min(length, longest)
        answer = (before.tokens * (1 + before.output_tokens // max(1, len(before.tokens))))[: before.output_tokens]
        tokens = (*before.tokens, *answer, *request.tokens)[-kept:] if request.tokens else ()
        joined.append(replace(request, prompt_tokens=kept, tokens=tokens, after=before.id, think_s=thinking[number]))
    return tuple(joined)
