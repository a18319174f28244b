"""Documents of text and conversations in JSON objects, for prompts and for training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lemix_hpc.config.workload_section import TextFields
from lemix_hpc.workload.lines import decode_json


@dataclass(frozen=True, slots=True)
class Document:
    """`prompt` is only context; `text` is what a model is to learn. They are joined without a separator."""

    text: str
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages for the model's chat template; what the assistant says is to be learnt.

    Each message has a `role` and `content`, a text, and maybe more that the template knows. `tools`: those that the assistant
    may call, as the template takes them.
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()


def parse_document(text: str | bytes, fields: TextFields) -> Document | Conversation:
    """The document in a JSON object. Raises ValueError, which says what is wrong, for anything else."""
    record = decode_json(text, dict[str, Any])
    unmapped = fields.text is None and fields.messages is None and fields.prompt is None
    if fields.messages is not None or (unmapped and "text" not in record and "messages" in record):
        return _conversation(record, fields)
    if fields.prompt is not None or (unmapped and "text" not in record):
        prompt_field, text_field = fields.prompt or "prompt", fields.completion or "completion"
        _check(record, fields, prompt_field, text_field)
        return Document(_string(record, text_field), prompt=_string(record, prompt_field, may_be_empty=True))
    text_field = fields.text or "text"
    _check(record, fields, text_field)
    return Document(_string(record, text_field))


def _conversation(record: dict[str, Any], fields: TextFields) -> Conversation:
    field, tools_field = fields.messages or "messages", fields.tools or "tools"
    _check(record, fields, field)
    messages = tuple(
        _message(number, message) for number, message in enumerate(_objects(field, record[field]), start=1)
    )
    if not messages:
        raise ValueError(f"`{field}` is empty")
    if all(message["role"] != "assistant" for message in messages):
        raise ValueError(f"`{field}` has no message of the assistant, so there is nothing to learn")
    tools = record.get(tools_field) or []
    if isinstance(tools, str):  # columns of a table have one type, and descriptions of tools have many
        tools = decode_json(tools, list[Any])
    return Conversation(messages, tuple(_objects(tools_field, tools)))


def _message(number: int, given: dict[str, Any]) -> dict[str, Any]:
    """As templates expect it: without keys that have no value, `content` a text, arguments of calls as objects."""
    message = {key: value for key, value in given.items() if value is not None}
    role, content = message.get("role"), message.get("content", "")
    if not isinstance(role, str):
        raise ValueError(f"message {number}: expected a `role`, a string, such as user or assistant")
    if isinstance(content, list):
        content = "".join(_part(number, part) for part in content)
    if not isinstance(content, str):
        raise ValueError(f"message {number}: `content` is {type(content).__name__}, expected a string")
    message["content"] = content
    if message.get("tool_calls"):
        message["tool_calls"] = [_call(number, call) for call in _objects("tool_calls", message["tool_calls"])]
    return message


def _part(number: int, part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise ValueError(f"message {number}: `content` has a part that is not text")
    return text


def _call(number: int, call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = decode_json(function["arguments"] or "{}", dict[str, Any])
    except ValueError as error:
        raise ValueError(f"message {number}: the arguments of a tool call are not a JSON object: {error}") from error
    return call | {"function": function | {"arguments": arguments}}


def _objects(field: str, value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"`{field}` is {type(value).__name__}, expected a list of objects")
    return value


def _check(record: dict[str, Any], fields: TextFields, *names: str) -> None:
    if any(name not in record for name in names):
        raise ValueError(f"expected {wanted(fields)}, found {_names(record)}")


def wanted(fields: TextFields) -> str:
    """The fields that a line has to have, in words."""
    if fields.text is not None:
        return f"`{fields.text}`"
    if fields.messages is not None:
        return f"`{fields.messages}`"
    if fields.prompt is not None:
        return f"`{fields.prompt}` and `{fields.completion}`"
    return "`text`, or `messages`, or `prompt` and `completion`"


def _names(record: dict[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in list(record)[:8]) or "no fields"


def _string(record: dict[str, Any], field: str, *, may_be_empty: bool = False) -> str:
    value = record[field]
    if not isinstance(value, str):
        raise ValueError(f"`{field}` is {type(value).__name__}, expected a string")
    if not value and not may_be_empty:
        raise ValueError(f"`{field}` is empty")
    return value
