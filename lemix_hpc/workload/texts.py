"""Documents of text from JSON lines, for prompts and for training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lemix_hpc.config.workload_section import TextData, TextFields
from lemix_hpc.workload.lines import Findings, decode_json, numbered_lines, parsed


@dataclass(frozen=True, slots=True)
class Document:
    """`prompt` is only context; `text` is what a model is to learn. They are joined without a separator."""

    text: str
    prompt: str = ""


def read_documents(data: TextData, findings: Findings) -> list[Document]:
    """All valid documents in file order; invalid lines are added to `findings`.

    Raises UserError if the file cannot be read or has no valid line.
    """
    expected = f"JSON lines with {_wanted(data.fields)}"

    def parse(text: str) -> Document:
        return parse_document(text, data.fields)

    lines = numbered_lines(data.path, expected)
    return [document for _, document in parsed(lines, parse, path=data.path, expected=expected, findings=findings)]


def parse_document(text: str | bytes, fields: TextFields) -> Document:
    """The document in a JSON object. Raises ValueError, which says what is wrong, for anything else."""
    record = decode_json(text, dict[str, Any])
    wanted = _wanted(fields)
    pair = fields.prompt is not None or (fields.text is None and "text" not in record)
    if pair:
        prompt_field, text_field = fields.prompt or "prompt", fields.completion or "completion"
        if prompt_field not in record or text_field not in record:
            raise ValueError(f"expected {wanted}, found {_names(record)}")
        return Document(_string(record, text_field), prompt=_string(record, prompt_field, may_be_empty=True))
    text_field = fields.text or "text"
    if text_field not in record:
        raise ValueError(f"expected {wanted}, found {_names(record)}")
    return Document(_string(record, text_field))


def _wanted(fields: TextFields) -> str:
    if fields.text is not None:
        return f"`{fields.text}`"
    if fields.prompt is not None:
        return f"`{fields.prompt}` and `{fields.completion}`"
    return "`text`, or `prompt` and `completion`"


def _names(record: dict[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in list(record)[:8]) or "no fields"


def _string(record: dict[str, Any], field: str, *, may_be_empty: bool = False) -> str:
    value = record[field]
    if not isinstance(value, str):
        raise ValueError(f"`{field}` is {type(value).__name__}, expected a string")
    if not value and not may_be_empty:
        raise ValueError(f"`{field}` is empty")
    return value
