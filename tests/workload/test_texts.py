import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.workload_section import TextData, TextFields
from lemix_hpc.workload.data_set import read_all
from lemix_hpc.workload.texts import Conversation, Document, parse_document


def documents(data: TextData) -> list[Document | Conversation]:
    window = read_all(data)
    return [window.document(index) for index in range(len(window))]


def test_text_or_pair_on_each_line(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl({"text": "a", "id": 1}, {"prompt": "p", "completion": "c"}, {"prompt": "", "completion": "c"})
    assert documents(TextData(path=path)) == [Document("a"), Document("c", "p"), Document("c")]
    assert read_all(TextData(path=path)).malformed == ()


def test_mapped_fields(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl({"question": "q", "answer": "a", "text": "other"})
    pair = TextFields(prompt="question", completion="answer")
    assert documents(TextData(path=path, fields=pair)) == [Document("a", "q")]
    alone = TextFields(text="answer")
    assert documents(TextData(path=path, fields=alone)) == [Document("a")]


def test_bad_lines_are_reported(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl(
        {"text": "good"}, {"text": 3}, {"text": ""}, {"title": "x"}, "[]", "{", {"prompt": "p"}, {"text": None}
    )
    assert documents(TextData(path=path)) == [Document("good")]
    reasons = dict(
        message.removeprefix(f"{path}, line ").split(": ", 1) for message in read_all(TextData(path=path)).malformed
    )
    assert reasons == {
        "2": "`text` is int, expected a string",
        "3": "`text` is empty",
        "4": "expected `text`, or `messages`, or `prompt` and `completion`, found `title`",
        "5": "Expected `object`, got `array`",
        "6": "not valid JSON (Input data was truncated)",
        "7": "expected `text`, or `messages`, or `prompt` and `completion`, found `prompt`",
        "8": "`text` is NoneType, expected a string",
    }


def test_wrong_mapping_names_the_fields(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl({"question": "q", "answer": "a"})
    fields = TextFields(prompt="query", completion="answer")
    with pytest.raises(
        UserError, match=r"`query` and `answer`, but none of its 1 lines is valid.*`question`, `answer`"
    ):
        documents(TextData(path=path, fields=fields))


ASKED = {"role": "user", "content": "a"}
SAID = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("record", "messages", "tools"),
    [
        ({"messages": [ASKED, SAID], "prompt": "a", "prompt_id": 3}, [ASKED, SAID], []),
        ({"messages": [ASKED, SAID], "tools": [{"name": "f"}]}, [ASKED, SAID], [{"name": "f"}]),
        ({"messages": [ASKED, SAID], "tools": '[{"name": "f"}]'}, [ASKED, SAID], [{"name": "f"}]),
        ({"messages": [ASKED | {"name": None}, SAID], "tools": None}, [ASKED, SAID], []),
        (
            {"messages": [ASKED | {"content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}, SAID]},
            [ASKED | {"content": "xy"}, SAID],
            [],
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": '{"x": 1}'}}]}
                ]
            },
            [{"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": {"x": 1}}}]}],
            [],
        ),
    ],
)
def test_messages(record: Any, messages: Any, tools: Any) -> None:
    found = parse_document(json.dumps(record), TextFields())
    assert found == Conversation(tuple(messages), tuple(tools))
    renamed = {"conversation": record["messages"], "functions": record.get("tools"), "text": "not this"}
    fields = TextFields(messages="conversation", tools="functions")
    assert parse_document(json.dumps(renamed), fields) == found


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": []}, "`messages` is empty"),
        ({"messages": "hi"}, "`messages` is str, expected a list of objects"),
        ({"messages": [ASKED, "hi"]}, "`messages` is list, expected a list of objects"),
        ({"messages": [ASKED]}, "`messages` has no message of the assistant"),
        ({"messages": [ASKED, {"content": "b"}]}, "message 2: expected a `role`"),
        ({"messages": [ASKED, SAID | {"content": 3}]}, "message 2: `content` is int, expected a string"),
        (
            {"messages": [ASKED | {"content": [{"type": "image_url"}]}, SAID]},
            "message 1: `content` has a part that is not text",
        ),
        ({"messages": [SAID | {"tool_calls": {}}]}, None),
        ({"messages": [SAID | {"tool_calls": {"x": 1}}]}, "`tool_calls` is dict, expected a list of objects"),
        (
            {"messages": [SAID | {"tool_calls": [{"function": {"arguments": "[1]"}}]}]},
            "message 1: the arguments of a tool call are not a JSON object",
        ),
        ({"messages": [ASKED, SAID], "tools": {"name": "f"}}, "`tools` is dict, expected a list of objects"),
        ({"messages": [ASKED, SAID], "tools": "f"}, "not valid JSON"),
    ],
)
def test_messages_that_are_refused(record: Any, reason: str | None) -> None:
    if reason is None:
        assert parse_document(json.dumps(record), TextFields())
        return
    with pytest.raises(ValueError, match=reason):
        parse_document(json.dumps(record), TextFields())


def test_one_kind_of_field_is_mapped() -> None:
    for fields in ({"text": "a", "messages": "b"}, {"messages": "a", "prompt": "b", "completion": "c"}):
        with pytest.raises(ValueError, match="map one of `text`, `messages`, and `prompt` with `completion`"):
            TextFields(**fields)
    with pytest.raises(ValueError, match="`tools` goes with `messages`"):
        TextFields(text="a", tools="b")
