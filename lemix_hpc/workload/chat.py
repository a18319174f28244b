"""Conversations through a model's chat template: their tokens, and which of these the assistant says."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from types import FrameType
from typing import Any

Message = Mapping[str, Any]
"""`role`, `content`, and whatever else the template knows, such as `tool_calls`."""
MOST_STEPS = 300_000
"""Lines of its own that a template may run for one text; for each message it takes some dozens."""
Span = tuple[int, int]
"""From a character of the rendered text up to, not with, another."""

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_OWN = "{# +#}"
"""Renders to nothing. Compiled templates are shared in a process, and must not mark what vLLM renders beside us."""
_ONE_AT_A_TIME = Lock()
"""transformers notes what is marked in the compiled template, so that it can be rendered once at a time."""


class EndlessTemplateError(ValueError):
    """A template has not come to its end within `MOST_STEPS`."""


def is_marked(template: str) -> bool:
    """Whether a template says itself, by `{% generation %}`, what the assistant generates."""
    return _MARKED.search(template) is not None


def assistant_tokens(
    tokenizer: Any, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
) -> tuple[list[int], list[bool]]:
    """Token ids of a whole conversation, and for each whether the assistant says it, by a tokenizer of `transformers`.

    The template's generation markers say so. Without them it is turn by turn what the template puts behind the prompt for an
    answer, up to the next turn. A token is the assistant's if any character of it is. Raises ValueError with the reason where
    the template refuses the messages, or neither works.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"the tokenizer ({type(tokenizer).__name__}) does not tell which characters a token stands for, so what the "
            "assistant says cannot be found; give the model a tokenizer.json"
        )
    template = tokenizer.get_chat_template(tools=list(tools) or None)
    if is_marked(template):
        text, spans = _render(tokenizer, messages, tools, marked=True)
    else:
        text = _render(tokenizer, messages, tools)[0]
        spans = _turn_by_turn(tokenizer, text, messages, tools)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = encoded["offset_mapping"]
    return list(encoded["input_ids"]), [any(s < end and e > start for start, end in spans) for s, e in offsets]


def rendered(tokenizer: Any, messages: Sequence[Message], *, answer: bool) -> str:
    """The text of a conversation; `answer` opens the assistant's turn. Raises ValueError if the template refuses it."""
    return _render(tokenizer, messages, (), answer=answer)[0]


def _turn_by_turn(
    tokenizer: Any, text: str, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
) -> list[Span]:
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(tokenizer, messages[:index], tools, answer=True)[0]
        after = _render(tokenizer, messages[: index + 1], tools)[0]
        if not after.startswith(before):
            raise ValueError(
                f"message {index + 1}: the chat template has no {{% generation %}} markers, and an answer does not begin as "
                "the prompt for it ends, so what is to be learnt cannot be told; put markers into the model's chat template"
            )
        if not text.startswith(after):
            raise ValueError(
                f"message {index + 1}: the chat template has no {{% generation %}} markers, and writes this answer or what "
                "precedes it in another way when more messages follow, so what is to be learnt cannot be told; put markers "
                "into the model's chat template, or end the conversation here"
            )
        spans.append((len(before), len(after)))
    return spans


def _render(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    *,
    answer: bool = False,
    marked: bool = False,
) -> tuple[str, list[Span]]:
    from transformers.utils.chat_template_utils import render_jinja_template

    given = list(tools) or None
    try:
        with _ONE_AT_A_TIME, _bounded():
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                tools=given,
                chat_template=_OWN + tokenizer.get_chat_template(tools=given),
                return_assistant_tokens_mask=marked,
                add_generation_prompt=answer,
                **tokenizer.special_tokens_map,
            )
    except EndlessTemplateError:
        raise
    except Exception as error:
        # A template is a program of the model's, which may fail in any way over messages that it does not expect.
        raise ValueError(f"the chat template refuses the messages: {error}") from error
    return texts[0], spans[0] if marked else []


@contextmanager
def _bounded() -> Iterator[None]:
    """Count what a template does in this thread: by its steps it is cut off at the same place wherever it runs, by time it
    would not be."""
    steps = 0

    def of_template(frame: FrameType, event: str, argument: object) -> Any:  # noqa: ARG001
        nonlocal steps
        steps += 1
        if steps > MOST_STEPS:
            raise EndlessTemplateError(f"the chat template does not come to its end within {MOST_STEPS} steps")
        return of_template

    def of_call(frame: FrameType, event: str, argument: object) -> Any:  # noqa: ARG001
        return of_template if frame.f_code.co_filename == "<template>" else None

    before = sys.gettrace()
    sys.settrace(of_call)
    try:
        yield
    finally:
        sys.settrace(before)
