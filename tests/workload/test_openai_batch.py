from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lemix_hpc.workload.lines import Findings
from lemix_hpc.workload.openai_batch import read_openai_batch
from lemix_hpc.workload.tokenizer import ByteTokenizer, Tokenizer
from lemix_hpc.workload.traces import TraceRow


def line(name: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": "/v1/completions", "body": {"model": "m", **body}}


def chat(name: str, *contents: Any, **body: Any) -> dict[str, Any]:
    roles = ("user", "assistant") * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return line(name, messages=messages, **body)


def read(
    path: Path, tokenizer: Tokenizer | None, *, answer: bool = True, findings: Findings | None = None
) -> list[TraceRow]:
    found = Findings() if findings is None else findings
    return list(read_openai_batch(path, found, tokenizer=tokenizer, default_output_tokens=16, answer=answer))


def text(row: TraceRow) -> str:
    assert len(row.tokens) == row.prompt_tokens
    return bytes(row.tokens).decode()


def test_prompts_ids_and_conversations(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl(
        line("a", prompt="Hello", max_tokens=5),
        line("b", prompt=[1, 2, 3]),
        chat("c", "Hi", "Yes?", [{"type": "text", "text": "Go"}, {"type": "text", "text": "od"}], max_tokens=0),
        chat("d", "Hi", max_tokens=4, max_completion_tokens=9),
    )
    rows = read(path, ByteTokenizer())
    assert [row.id for row in rows] == ["a", "b", "c", "d"]
    assert [row.output_tokens for row in rows] == [5, 16, 0, 9]
    assert {row.time for row in rows} == {0.0}
    assert text(rows[0]) == "Hello" and rows[1].tokens == (1, 2, 3)
    assert text(rows[2]) == "user: Hi\nassistant: Yes?\nuser: Good\nassistant:"
    assert text(read(path, ByteTokenizer(), answer=False)[3]) == "user: Hi\n"


def test_chat_template_is_used_when_there_is_one(write_jsonl: Callable[..., Path]) -> None:
    class Templated(ByteTokenizer):
        def encode_chat(self, messages: Sequence[dict[str, str]], *, answer: bool) -> list[int]:
            if messages[0]["content"] == "bad":
                raise ValueError("refused")
            return self.encode("|".join(message["content"] for message in messages) + "!" * answer)

    path = write_jsonl(chat("a", "Hi", "Yes?"), chat("b", "bad"), line("c", prompt="plain"))
    findings = Findings()
    assert [text(row) for row in read(path, Templated(), findings=findings)] == ["Hi|Yes?!", "plain"]
    assert findings.malformed == [f"{path}, line 2: refused"]


def test_without_a_tokenizer_lengths_are_estimated(write_jsonl: Callable[..., Path]) -> None:
    rows = read(write_jsonl(line("a", prompt="x" * 401), line("b", prompt=[7, 8, 9])), None)
    assert [(row.prompt_tokens, row.tokens) for row in rows] == [(101, ()), (3, ())]


def test_timestamps_are_on_all_lines_or_none(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl(
        {**line("a", prompt="x"), "timestamp": 10}, line("b", prompt="y"), {**line("c", prompt="z"), "timestamp": 12.5}
    )
    findings = Findings()
    assert [row.time for row in read(path, None, findings=findings)] == [10.0, 12.5]
    assert findings.malformed == [f"{path}, line 2: `timestamp` must be on every line or on none"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (line("good", prompt="x"), "custom_id 'good' was used before"),
        (line("x"), "either `prompt` or `messages`"),
        (line("x", prompt="x", messages=[{"role": "user", "content": "x"}]), "either `prompt` or `messages`"),
        (line("x", prompt=""), "the prompt is empty"),
        (line("x", prompt=[]), "the prompt is empty"),
        (line("x", messages=[]), "the prompt is empty"),
        (line("x", prompt=["several", "prompts"]), "body.prompt"),
        (line("x", prompt=[300]), "token id 300 is outside of the vocabulary of 257"),
        (line("x", prompt="x", n=2), "`n` is 2"),
        (line("x", prompt="x", max_tokens=-1), "max_tokens"),
        (chat("x", [{"type": "image_url", "image_url": {}}]), "image_url"),
        ({"body": {"prompt": "x"}}, "custom_id"),
        (line("", prompt="x"), "custom_id"),
        ("{", "not valid JSON"),
    ],
)
def test_bad_lines_are_reported(write_jsonl: Callable[..., Path], bad: Any, reason: str) -> None:
    path = write_jsonl(line("good", prompt="x"), bad)
    findings = Findings()
    assert [row.id for row in read(path, ByteTokenizer(), findings=findings)] == ["good"]
    assert len(findings.malformed) == 1
    assert findings.malformed[0].startswith(f"{path}, line 2: ") and reason in findings.malformed[0]
