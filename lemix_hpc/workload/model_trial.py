"""What a checkpoint brings besides weights, tried out before anything starts: its chat template, and how it wants to generate.

A template is a program. Loops that do not end are cut off wherever it is used; a number of a billion digits, or a text of as
many characters, can only be stopped from outside, so it is compiled and used in a copy of this process first.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Model
from lemix_hpc.config.text_file import why_unreadable
from lemix_hpc.workload import limited_copy, tokenizer_files
from lemix_hpc.workload.chat import MOST_STEPS, EndlessTemplateError
from lemix_hpc.workload.tokenizer import HuggingFaceChatTokenizer, own_tokenizer

CPU_S = 5
"""Processor time that a template may take for a conversation of two messages."""
MOST_BYTES = 1 << 30
GENERATION = "generation_config.json"
_TALK = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello!"}]

NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Token = Annotated[int, msgspec.Meta(ge=0)]


class _Generation(msgspec.Struct):
    """What vLLM takes from a generation config for calls that do not say it, and what it accepts there."""

    temperature: NotNegative | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    min_p: Share | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    max_new_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    eos_token_id: Token | list[Token] | None = None


def check_template(model: Model) -> None:
    """Raises UserError for a chat template that cannot be compiled, or takes too long or too much memory. One that refuses the
    messages of the trial may take others."""
    tokenizer = own_tokenizer(model)
    if model.path is None or not isinstance(tokenizer, HuggingFaceChatTokenizer):
        return
    why, late = limited_copy.ended(*limited_copy.start(lambda: _tried(tokenizer), CPU_S, MOST_BYTES))
    if why is None:
        limit = (
            f"takes more than {CPU_S} s" if late else f"takes more than {MOST_BYTES >> 20} MiB, or breaks its compiler,"
        )
        why = f"{limit} for a conversation of two messages"
    if why:
        raise UserError(f"model.path: the chat template in {tokenizer_files.template_file(model.path)} {why}")


def check_generation(model: Model) -> None:
    """Raises UserError for a generation config that vLLM would fail with, at its start or in every call."""
    if model.path is None or not os.path.lexists(file := model.path / GENERATION):
        return
    if why := why_unreadable(file):
        raise UserError(f"model.path: {why}")
    try:
        msgspec.convert(tokenizer_files.read_object(file), _Generation)
        _read_by_transformers(model.path)
    except UserError as error:
        raise UserError(f"model.path: {error}") from error
    except Exception as error:
        # It is checked by the rules of transformers, too, which raise anything.
        raise UserError(f"model.path: {file}: {error}") from error


def _read_by_transformers(directory: Path) -> None:
    from transformers import GenerationConfig

    GenerationConfig.from_pretrained(directory, local_files_only=True).to_diff_dict()


def _tried(tokenizer: HuggingFaceChatTokenizer) -> str:
    """In the copy: what is wrong with the template, or ""."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    uses: tuple[Callable[[], object], ...] = (
        lambda: tokenizer.encode_chat(_TALK, answer=False),
        lambda: tokenizer.encode_conversation(_TALK, ()),
    )
    for use in uses:
        try:
            use()
        except Exception as error:  # noqa: BLE001  told where the copy was started
            if why := _why_unusable(error):
                return why
    return ""


def _why_unusable(error: Exception) -> str:
    from jinja2 import TemplateSyntaxError

    if isinstance(error, EndlessTemplateError):
        return f"does not come to its end within {MOST_STEPS} steps"
    cause = error.__cause__
    if isinstance(cause, TemplateSyntaxError):
        return f"cannot be compiled: line {cause.lineno}: {cause.message}"
    if isinstance(cause, MemoryError):
        return f"takes more than {MOST_BYTES >> 20} MiB for a conversation of two messages"
    return "" if isinstance(error, ValueError) else f"cannot be used: {error}"
