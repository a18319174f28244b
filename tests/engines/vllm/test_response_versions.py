import json

import pytest

from lemix_hpc.engines.vllm.response_versions import (
    DEAD_END,
    VERSIONS_HEADER,
    as_refusal,
    with_priority,
    with_versions,
)

USAGE = {"id": "x", "usage": {"prompt_tokens": 2, "total_tokens": 3}}
HEADERS = [("content-type", "application/json"), ("content-length", "10")]


def compact(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def test_a_whole_answer_has_its_versions_in_header_and_usage() -> None:
    headers, data = with_versions(200, HEADERS, compact(USAGE), (3, 5))
    assert dict(headers)[VERSIONS_HEADER] == "3-5"
    assert int(dict(headers)["content-length"]) == len(data)
    assert json.loads(data)["usage"] == {"prompt_tokens": 2, "total_tokens": 3, "weight_versions": [3, 5]}


def test_streamed_pieces_stay_as_they_are_but_for_the_usage() -> None:
    piece = b'data: {"choices":[{"text":"a"}]}\n\n'
    assert with_versions(0, [], piece, (3, 5)) == ([], piece)
    both = piece + b"data: " + compact(USAGE) + b"\n\n"
    _, data = with_versions(0, [], both, (3, 5))
    first, second, end = data.split(b"\n\n")
    assert first + b"\n\n" == piece
    assert json.loads(second.removeprefix(b"data: "))["usage"]["weight_versions"] == [3, 5]
    assert end == b""


def test_the_word_usage_in_a_text_is_no_usage_object() -> None:
    piece = b"data: " + compact({"choices": [{"text": '"usage":{"a":1}'}]}) + b"\n\n"
    assert with_versions(0, [], piece, (1, 1)) == ([], piece)


@pytest.mark.parametrize(
    "text", [b'{"usage":{', b'["usage":{}]', b'{"inner":{"usage":{"a":1}}}', b'{"usage":null,"x":{"usage":{}}}']
)
def test_what_only_looks_like_a_usage_object_is_passed_on(text: bytes) -> None:
    assert with_versions(0, [], text, (1, 2)) == ([], text)


def test_an_answer_without_generated_tokens_is_passed_on() -> None:
    assert with_versions(404, HEADERS, b"{}", None) == (HEADERS, b"{}")


def test_the_policys_order_becomes_vllms_priority() -> None:
    body = with_priority("/v1/completions?x=1", b'{"prompt":"a","priority":7}', 12)
    assert json.loads(body) == {"prompt": "a", "priority": 12}
    for empty in (b"{}", b" { \n} "):
        assert json.loads(with_priority("/v1/completions", empty, -3)) == {"priority": -3}
    deep = b'{"a":' * 900 + b"1" + b"}" * 900
    assert with_priority("/v1/completions", deep, 7) == deep[:-1] + b',"priority":7}', "it need not be understood"


@pytest.mark.parametrize(
    ("path", "body"), [("/tokenize", b"{}"), ("/v1/completions", b"{bad"), ("/v1/completions", b"[1]")]
)
def test_other_calls_and_broken_bodies_are_left_to_vllm(path: str, body: bytes) -> None:
    assert with_priority(path, body, 12) == body


STREAM = [("content-type", "text/event-stream; charset=utf-8"), ("x-request-id", "t1")]
REFUSED = b'{"error": {"message": "no", "type": "BadRequestError", "param": null, "code": 400}}'
BROKEN = b'{"error": {"message": "Internal server error", "code": 500}}'


@pytest.mark.parametrize(
    ("content", "dead_end", "told"), [(REFUSED, False, REFUSED), (BROKEN, True, DEAD_END), (REFUSED, True, REFUSED)]
)
def test_a_stream_that_begins_with_a_refusal_is_a_plain_answer(content: bytes, dead_end: bool, told: bytes) -> None:
    plain = as_refusal(200, STREAM, b"data: " + content + b"\n\n", dead_end=dead_end)
    assert plain is not None
    status, headers, body = plain
    assert (status, body) == (400, told)
    assert dict(headers) == {
        "content-type": "application/json",
        "content-length": str(len(told)),
        "x-request-id": "t1",
    }


def test_a_dead_end_is_the_clients() -> None:
    plain = as_refusal(500, STREAM, BROKEN, dead_end=True)
    assert plain is not None and plain[0] == 400 and plain[2] == DEAD_END
    assert as_refusal(500, STREAM, BROKEN, dead_end=False) is None
    assert as_refusal(0, [], b"data: " + BROKEN + b"\n\n", dead_end=True) == (0, [], b"data: " + DEAD_END + b"\n\n")


@pytest.mark.parametrize(
    ("status", "data"),
    [
        (200, b'data: {"choices": []}\n\n'),
        (200, b"data: " + BROKEN + b"\n\n"),
        (200, b'data: {"error": "odd"}\n\n'),
        (0, b'data: {"error": {"message": "later", "code": 400}}\n\n'),
        (200, b'{"error": {"message": "no stream", "code": 400}}'),
        (404, b'{"error": {"message": "no such model", "code": 404}}'),
    ],
)
def test_other_answers_stay_as_they_are(status: int, data: bytes) -> None:
    assert as_refusal(status, STREAM, data, dead_end=False) is None
