"""The file with the keys of a run's clients: one key alone, or several in YAML, each with a name, rights and limits."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, PositiveFloat, StringConstraints, ValidationError, field_validator

from lemix_hpc.config.document import parse_document
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.section import Section
from lemix_hpc.config.text_file import LARGEST_TEXT

Right = Literal["serve", "train", "metrics"]
RIGHTS: tuple[Right, ...] = get_args(Right)
ALONE = "default"
"""The name of a key that is alone in its file."""


class ApiKey(Section):
    """`requests_per_s` and `tokens_per_min`: what may be asked for with it, prompts and the most that may be generated
    together; None without a limit."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.@:-]{1,64}$")]
    key: str
    rights: list[Right] = Field(default=list(RIGHTS), min_length=1)
    requests_per_s: PositiveFloat | None = None
    tokens_per_min: PositiveFloat | None = None

    @field_validator("key")
    @classmethod
    def _can_be_sent(cls, key: str) -> str:
        return usable(key)


class _Keys(Section):
    keys: Annotated[list[ApiKey], Field(min_length=1)]


def usable(key: str) -> str:
    """A key without blanks around it. Raises ValueError if no client could send it."""
    key = key.strip()
    if not key:
        raise ValueError("an empty key would let everybody in")
    if not key.isprintable() or any(letter.isspace() for letter in key.replace(" ", "")):
        raise ValueError("a key is one line of printable characters")
    return key


def read_keys(path: Path) -> list[ApiKey]:
    """Raises UserError for a file that cannot be read, that others can, or that is wrong; no message shows a key."""
    try:
        # A pipe without a writer would wait for ever.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise UserError(f"{path}: the keys must be in an ordinary file")
            content = file.read(LARGEST_TEXT + 1)
    except OSError as error:
        raise UserError(f"{path}: the keys cannot be read: {error.strerror}") from error
    if len(content) > LARGEST_TEXT:
        raise UserError(f"{path}: has more than {LARGEST_TEXT >> 20} MB, which no file of keys needs")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(f"{path}: others than its owner can get at the keys; do: chmod 600 {path}")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8") from error
    if not all(letter.isprintable() or letter in "\t\r\n" for letter in text):
        raise UserError(f"{path}: not a text file: it has characters that cannot be printed")
    if len(text.strip().splitlines()) <= 1 and not text.startswith("keys:"):
        try:
            return [ApiKey(name=ALONE, key=usable(text))]
        except ValueError as error:
            raise UserError(f"{path}: {_first(error)}") from None
    return _several(text, path)


def _several(text: str, path: Path) -> list[ApiKey]:
    try:
        data = parse_document(text, str(path)).data
    except UserError as error:
        # The reason may quote a key.
        place = str(error).partition(": not valid YAML")[0]
        raise UserError(f"{place}: not valid YAML; put keys into quotes") from None
    try:
        keys = _Keys.model_validate(data).keys
    except ValidationError as error:
        # Without the values that it was given: these are secret.
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        where = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'keys'}: {fault['msg']}" for fault in faults)
        raise UserError(f"{path}: {where}; it needs `keys:` with `name` and `key` of each") from None
    for of_each in ([key.name for key in keys], [key.key for key in keys]):
        if len(set(of_each)) < len(of_each):
            raise UserError(f"{path}: two keys have the same name, or are the same key")
    return keys


def _first(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        return str(error.errors(include_url=False, include_input=False, include_context=False)[0]["msg"])
    return str(error)
