"""Text to token ids and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Model
from lemix_hpc.config.text_file import read_bytes
from lemix_hpc.workload import chat, tokenizer_files

Messages = Sequence[dict[str, str]]

END = "<|end|>"
"""How the end-of-text token of the byte-level tokenizer is written."""


class Tokenizer(Protocol):
    """Ids from 0 to `vocab_size` - 1. `eos` ends a text; it also pads texts, and precedes prompts that are too short."""

    vocab_size: int
    eos: int

    def encode(self, text: str) -> list[int]:
        """Token ids of the text alone, without special tokens around it."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special ones by their names; a character that is not whole becomes U+FFFD."""
        ...


@runtime_checkable
class ChatTokenizer(Tokenizer, Protocol):
    """A tokenizer with a chat template."""

    def encode_chat(self, messages: Messages, *, answer: bool) -> list[int]:
        """Token ids of a conversation; `answer` opens the assistant's turn. Raises ValueError if the template refuses it."""
        ...


@runtime_checkable
class ConversationTokenizer(Tokenizer, Protocol):
    """A tokenizer that can tell what the assistant says in a conversation."""

    def encode_conversation(
        self, messages: Sequence[chat.Message], tools: Sequence[Mapping[str, Any]]
    ) -> tuple[list[int], list[bool]]:
        """Token ids of a whole conversation, and for each whether the assistant says it. Raises ValueError with the reason
        where the chat template refuses the messages, or does not let it be told."""
        ...


class ByteTokenizer:
    """UTF-8 bytes as ids 0..255, and 256 for the end of a text. Needs no files."""

    vocab_size = 257
    eos = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        parts = (END.encode() if token == self.eos else bytes([token]) for token in ids)
        return b"".join(parts).decode(errors="replace")

    def encode_conversation(
        self, messages: Sequence[chat.Message], tools: Sequence[Mapping[str, Any]]
    ) -> tuple[list[int], list[bool]]:
        return chat.assistant_tokens(self._in_hugging_face_form, messages, tools)

    @cached_property
    def _in_hugging_face_form(self) -> Any:
        from lemix_hpc.workload.byte_level import (
            byte_level_tokenizer,
        )  # with its template models without one are served

        return byte_level_tokenizer()


class HuggingFaceTokenizer:
    """A tokenizer of `transformers`."""

    def __init__(self, tokenizer: Any, eos: int) -> None:
        self._tokenizer = tokenizer
        self.vocab_size: int = len(tokenizer)
        self.eos = eos

    def encode(self, text: str) -> list[int]:
        # `verbose=False`: long documents are cut later, so the warning about the model's length is not wanted.
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


class HuggingFaceChatTokenizer(HuggingFaceTokenizer):
    """A tokenizer of `transformers` with a chat template."""

    def encode_chat(self, messages: Messages, *, answer: bool) -> list[int]:
        return self.encode(chat.rendered(self._tokenizer, messages, answer=answer))

    def encode_conversation(
        self, messages: Sequence[chat.Message], tools: Sequence[Mapping[str, Any]]
    ) -> tuple[list[int], list[bool]]:
        return chat.assistant_tokens(self._tokenizer, messages, tools)


def load_tokenizer(model: Model) -> Tokenizer:
    """The checkpoint's own tokenizer, or the byte-level one if it has none or the model is made from a config.

    Raises UserError if the checkpoint cannot be read or the model's vocabulary is too small for the tokenizer, and is not to be
    resized.
    """
    config = model_config(model)
    path = model.path
    tokenizer, where = _own_tokenizer(model)
    if model.resize:
        return tokenizer
    size = config.get("vocab_size", tokenizer.vocab_size)
    if not isinstance(size, int) or size < tokenizer.vocab_size:
        # Where weights are there, they would not fit another vocab_size alone.
        way_out = (
            f"Set vocab_size to at least {tokenizer.vocab_size}."
            if path is None
            else "Use the tokenizer that belongs to the model, or set model.resize: true, which gives its embedding a row "
            "for every token."
        )
        raise UserError(
            f"The model's config has vocab_size {size!r}, but {where} needs {tokenizer.vocab_size}. {way_out}"
        )
    return tokenizer


def own_tokenizer(model: Model) -> Tokenizer:
    """The model's tokenizer, whatever its embedding has room for. Raises UserError if it cannot be loaded."""
    return _own_tokenizer(model)[0]


def _own_tokenizer(model: Model) -> tuple[Tokenizer, str]:
    """With how messages call it."""
    path = model.path
    if path is not None and tokenizer_files.has_tokenizer(path):
        return _from_checkpoint(path), f"the tokenizer in {path}"
    return ByteTokenizer(), "the byte-level tokenizer"


def model_config(model: Model) -> dict[str, Any]:
    """The model's Hugging Face config. Raises UserError if it cannot be read."""
    if model.path is None:
        return model.config or {}
    file = model.path / "config.json"
    try:
        return msgspec.json.decode(read_bytes(file), type=dict[str, Any])
    except OSError as error:
        raise UserError(
            f"model.path: expected a Hugging Face checkpoint directory, but {file} cannot be read: {error.strerror}."
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"model.path: {file} is not a Hugging Face config: {error}.") from error


def _from_checkpoint(path: Path) -> HuggingFaceTokenizer:
    tokenizer = tokenizer_files.load(path)
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
    if eos is None:
        raise UserError(
            f"model.path: the tokenizer in {path} has no end-of-text token; set `eos_token` in its tokenizer_config.json."
        )
    kind = HuggingFaceChatTokenizer if tokenizer.chat_template else HuggingFaceTokenizer
    return kind(tokenizer, eos)
