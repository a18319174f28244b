"""Conversations: requests whose next turn waits for the answer to the one before, and carries it along."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from lemix_hpc.config.serving_section import Conversations
from lemix_hpc.workload.tasks import Request


def in_conversations(
    requests: Iterable[Request], conversations: Conversations, longest: int | None, thinking: Iterable[float]
) -> Iterator[Request]:
    """Join every `turns` consecutive requests into a conversation; the last one may be shorter.

    A turn's prompt begins with all earlier turns, and is cut to its last `longest` tokens. The model's answers are not known
    in advance: where tokens matter, tokens of the earlier prompt take their place. `thinking`: seconds between an answer and
    the next turn, for each request, of which a first turn needs none.
    """
    before: Request | None = None
    for number, (request, think_s) in enumerate(zip(requests, thinking, strict=False), start=1):
        followed = number % conversations.turns != 0
        if before is None:
            turn = replace(request, followed=followed)
        else:
            length = before.prompt_tokens + before.output_tokens + request.prompt_tokens
            kept = length if longest is None else min(length, longest)
            tokens = (*_said(before), *request.tokens)[-kept:] if request.tokens else ()
            turn = replace(
                request, prompt_tokens=kept, tokens=tokens, after=before.id, think_s=think_s, followed=followed
            )
        yield turn
        before = turn if followed else None


def _said(turn: Request) -> tuple[int, ...]:
    """Its prompt, and the stand-in for its answer."""
    answer = turn.tokens * (1 + turn.output_tokens // max(1, len(turn.tokens)))
    return turn.tokens + answer[: turn.output_tokens]
