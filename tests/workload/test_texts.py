from collections.abc import Callable
from pathlib import Path

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.workload_section import TextData, TextFields
from lemix_hpc.workload.lines import Findings
from lemix_hpc.workload.texts import Document, read_documents


def test_text_or_pair_on_each_line(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl({"text": "a", "id": 1}, {"prompt": "p", "completion": "c"}, {"prompt": "", "completion": "c"})
    findings = Findings()
    assert read_documents(TextData(path=path), findings) == [Document("a"), Document("c", "p"), Document("c")]
    assert findings.malformed == []


def test_mapped_fields(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl({"question": "q", "answer": "a", "text": "other"})
    pair = TextFields(prompt="question", completion="answer")
    assert read_documents(TextData(path=path, fields=pair), Findings()) == [Document("a", "q")]
    alone = TextFields(text="answer")
    assert read_documents(TextData(path=path, fields=alone), Findings()) == [Document("a")]


def test_bad_lines_are_reported(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl(
        {"text": "good"}, {"text": 3}, {"text": ""}, {"title": "x"}, "[]", "{", {"prompt": "p"}, {"text": None}
    )
    findings = Findings()
    assert read_documents(TextData(path=path), findings) == [Document("good")]
    reasons = dict(message.removeprefix(f"{path}, line ").split(": ", 1) for message in findings.malformed)
    assert reasons == {
        "2": "`text` is int, expected a string",
        "3": "`text` is empty",
        "4": "expected `text`, or `prompt` and `completion`, found `title`",
        "5": "Expected `object`, got `array`",
        "6": "not valid JSON (Input data was truncated)",
        "7": "expected `text`, or `prompt` and `completion`, found `prompt`",
        "8": "`text` is NoneType, expected a string",
    }


def test_wrong_mapping_names_the_fields(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl({"question": "q", "answer": "a"})
    fields = TextFields(prompt="query", completion="answer")
    with pytest.raises(
        UserError, match=r"`query` and `answer`, but none of its 1 lines is valid.*`question`, `answer`"
    ):
        read_documents(TextData(path=path, fields=fields), Findings())
