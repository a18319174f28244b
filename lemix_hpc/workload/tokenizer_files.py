"""The files of a checkpoint's tokenizer: what is wrong with one is told by its name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.text_file import read_bytes, read_text, why_unreadable

TOKENIZER = "tokenizer.json"
TOKENIZER_FILES = (
    TOKENIZER,
    "tokenizer.model",
    "tokenizer_config.json",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
)
"""Any one of these in a checkpoint directory means that it brings its tokenizer."""
TEMPLATE = "chat_template.jinja"
_OBJECTS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_LARGEST = 1 << 28
"""Bytes of one of these files; those of the largest vocabularies have some 30 MB."""
_PLAIN = "Hello! 1 + 1 = 2\n"


def load(directory: Path) -> Any:
    """The tokenizer, of `transformers`. Raises UserError if it cannot be loaded, or not even be used for a plain text."""
    check_files(directory)
    from transformers import AutoTokenizer

    try:
        # Without `trust_remote_code` it would ask at the terminal whether to run code that the checkpoint brings.
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        tokenizer.decode(tokenizer.encode(_PLAIN, add_special_tokens=False))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # The libraries behind it raise anything for a damaged file: plain Exception, and what is none where Rust panics.
        raise UserError(f"model.path: {_at_fault(directory)} cannot be used: {error}") from error
    given = tokenizer.chat_template
    if not all(isinstance(text, str) for text in (given.values() if isinstance(given, dict) else [given or ""])):
        raise UserError(f"model.path: the chat template in {template_file(directory)} is not a text")
    return tokenizer


def check_files(directory: Path) -> None:
    """Raises UserError for one that cannot be read to its end, or as what it is."""
    templates = sorted(directory.glob("additional_chat_templates/*.jinja"))
    for file in (*(directory / name for name in (*TOKENIZER_FILES, *_OBJECTS, "merges.txt", TEMPLATE)), *templates):
        try:
            _check_file(file)
        except UserError as error:
            raise UserError(f"model.path: {error}") from error


def _check_file(file: Path) -> None:
    if not os.path.lexists(file):
        return
    if why := why_unreadable(file):
        raise UserError(why)
    if file.name in _OBJECTS:
        read_object(file)
    elif file.suffix == ".jinja":
        read_text(file)
    elif file.stat().st_size > _LARGEST:
        raise UserError(f"{file}: has more than {_LARGEST >> 20} MB, which no file of this kind needs")


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a model, as libraries read it. Raises UserError if it has none."""
    try:
        content = json.loads(read_bytes(file, most=_LARGEST))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} does not hold a JSON object")
    return content


def has_tokenizer(directory: Path) -> bool:
    return any(os.path.lexists(directory / name) for name in TOKENIZER_FILES)


def template_file(directory: Path) -> Path:
    """Where its chat template is."""
    own = directory / TEMPLATE
    return own if own.is_file() else directory / "tokenizer_config.json"


def _at_fault(directory: Path) -> str:
    """The file that has most likely spoilt the tokenizer."""
    from tokenizers import Tokenizer

    file = directory / TOKENIZER
    if file.is_file():
        try:
            Tokenizer.from_file(str(file)).encode(_PLAIN)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001  the same as above
            return str(file)
    others = [str(directory / name) for name in _OBJECTS if (directory / name).is_file()]
    return f"the tokenizer in {directory} ({' or '.join(others)})" if others else f"the tokenizer in {directory}"
