"""What is added to calls and answers of vLLM's server on their way through the node."""

from __future__ import annotations

from typing import Any

import msgspec

from lemix_hpc.engines.vllm.asgi import Headers

VERSIONS_HEADER = "x-lemix-weight-versions"
_PRIORITISED = ("/v1/completions", "/v1/chat/completions")
_EVENT = b"data: "
_ERROR_EVENT = _EVENT + b'{"error":'

Versions = tuple[int, int] | None


def with_priority(path: str, body: bytes, priority: int) -> bytes:
    """A call that generates, with the place among waiting requests that the policy gave it. Bad JSON is left to vLLM.

    It becomes the last key of the object: of two with one name, readers of JSON take the last.
    """
    text = body.strip(b" \t\r\n")
    if path.partition("?")[0] not in _PRIORITISED or text[:1] != b"{" or text[-1:] != b"}":
        return body
    before = text[:-1].rstrip(b" \t\r\n")
    return before + (b"" if before == b"{" else b",") + b'"priority":%d}' % priority


def with_versions(status: int, headers: Headers, data: bytes, versions: Versions) -> tuple[Headers, bytes]:
    """A piece of an answer with the weight versions that it spans: in a header, and in the usage object.

    A streamed answer's header knows the versions up to its first token, its last usage object all of them.
    """
    if versions is None:
        return headers, data
    if b'"usage":{' in data:
        data = _in_events(data, versions) if data.startswith(_EVENT) else _in_usage(data, versions)
        headers = [(name, str(len(data)) if name.lower() == "content-length" else value) for name, value in headers]
    if status:
        headers = [*headers, (VERSIONS_HEADER, f"{versions[0]}-{versions[1]}")]
    return headers, data


DEAD_END = msgspec.json.encode(
    {
        "error": {
            "message": "The model has come where the grammar lets no token follow; see that all of its rules can end.",
            "type": "invalid_request_error",
            "param": None,
            "code": 400,
        }
    }
)


def as_refusal(status: int, headers: Headers, data: bytes, *, dead_end: bool) -> tuple[int, Headers, bytes] | None:
    """A piece of an answer that blames the client, as it should be told: plainly, with its status. None if it is another.

    vLLM tells what it refuses in the first event of a stream, if one was asked for, and calls a `dead_end` of the client's
    grammar an error of its own. In the middle of a stream there is no status any more.
    """
    event, _, _ = data.partition(b"\n\n")
    code, in_stream = status, event.startswith(_ERROR_EVENT)
    if in_stream:
        data = event.removeprefix(_EVENT)
        try:
            code = msgspec.json.decode(data, type=_Refusal).error.code
        except msgspec.DecodeError:
            return None
    if code == 500 and dead_end:
        code, data = 400, DEAD_END
    elif not (in_stream and status and 400 <= code < 500):
        return None
    if not status:
        return 0, [], _EVENT + data + b"\n\n"
    kept = [(name, value) for name, value in headers if name.lower() not in ("content-type", "content-length")]
    return code, [*kept, ("content-type", "application/json"), ("content-length", str(len(data)))], data


class _Error(msgspec.Struct):
    code: int


class _Refusal(msgspec.Struct):
    error: _Error


def _in_events(data: bytes, versions: tuple[int, int]) -> bytes:
    events = data.split(b"\n\n")
    return b"\n\n".join(
        _EVENT + _in_usage(event[len(_EVENT) :], versions) if b'"usage":{' in event else event for event in events
    )


def _in_usage(text: bytes, versions: tuple[int, int]) -> bytes:
    """The answer with versions in its usage object; as it is if it turns out to have none."""
    try:
        answer: Any = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
    if not isinstance(answer, dict) or not isinstance(answer.get("usage"), dict):
        return text
    answer["usage"]["weight_versions"] = list(versions)
    return msgspec.json.encode(answer)
