import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.workload.batch_calls import name_of, read_batch_calls
from lemix_hpc.workload.lines import Findings
from lemix_hpc.workload.load import load_workload
from lemix_hpc.workload.tokenizer import ByteTokenizer
from lemix_hpc.workload.traces import TraceRow


def line(name: str, url: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": url, "body": {"model": "m", **body}}


def read(path: Path) -> tuple[list[TraceRow], Findings]:
    findings = Findings()
    return list(read_batch_calls(path, findings, ByteTokenizer(), 100)), findings


def test_lines_are_calls_with_their_bodies_untouched(write_jsonl: Callable[..., Path]) -> None:
    body = '{"model":"m",  "prompt": "\\u00e4", "seed": 1e3}'
    path = write_jsonl(
        f'{{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {body}}}',
        line("b", "/v1/chat/completions", messages=[{"role": "user", "content": "hello"}], max_tokens=4),
        line("c", prompt=["a", "b"], n=3, max_tokens=5),
    )
    (first, second, third), findings = read(path)
    assert first.call is not None and first.call.body == body.encode()
    assert (first.call.method, first.call.path, first.prompt_tokens, first.output_tokens) == (
        "POST",
        "/v1/completions",
        2,
        16,
    )
    assert (second.id, second.prompt_tokens, second.output_tokens, second.tokens) == ("b", 5, 4, ())
    assert third.call is not None and (third.output_tokens, third.call.answers) == (30, 6)
    assert first.call.answers == 1 and findings.bad_lines == []


@pytest.mark.parametrize(
    ("bad", "name", "wrong"),
    [
        (line("a", prompt="x"), "a", "custom_id 'a' was used before"),
        (line("z", "/v1/embeddings"), "z", "`url` is '/v1/embeddings', expected one of /v1/completions"),
        (line("z", stream=True, prompt="x"), "z", "`stream` is not allowed in a batch"),
        (line("z") | {"method": "GET"}, "z", "Invalid enum value 'GET'"),
        (line("z") | {"body": "text"}, "z", "Expected `object`"),
        (line("z") | {"timestamp": 1.0}, "z", "`timestamp` must be on every line or on none"),
        ({"custom_id": "z"}, "z", "Object missing required field"),
        ({"custom_id": 7}, None, "Expected `str`"),
        ('{"custom_id": "z", ', None, "not valid JSON"),
    ],
)
def test_a_bad_line_is_kept_with_its_reason(
    write_jsonl: Callable[..., Path], bad: Any, name: str | None, wrong: str
) -> None:
    rows, findings = read(write_jsonl(line("a", prompt="hi"), bad))
    assert [row.id for row in rows] == ["a"]
    (found,) = findings.bad_lines
    assert found.reason.startswith("line 2: ") and wrong in found.reason
    assert name_of(found.content) == name


def test_names_of_lines_that_are_no_text() -> None:
    assert name_of(b'{"custom_id": "\xff"}') is None
    assert name_of(b"{" * 100_000) is None


def test_vllm_gets_calls_and_torch_gets_tokens(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl(line("a", prompt="hello", max_tokens=3), {"custom_id": "b"}, line("c", prompt="hi"))

    def requests(kind: str) -> Any:
        source = {"kind": "openai-batch", "path": str(path)}
        model = {"config": {"model_type": "llama", "vocab_size": 300, "max_position_embeddings": 100}}
        return load_workload(
            Recipe.model_validate(
                {"model": model, "engine": {"kind": kind}, "serving": {"source": source, "mode": "generate"}}
            )
        )

    served, computed = requests("vllm"), requests("torch")
    assert [(r.id, r.prompt_tokens, r.output_tokens, r.tokens) for r in served.requests] == [
        ("a", 5, 3, ()),
        ("c", 2, 16, ()),
    ]
    assert [json.loads(r.call.body)["prompt"] for r in served.requests] == ["hello", "hi"]
    assert [name_of(bad.content) for bad in served.bad_calls] == ["b"]
    assert [(r.id, len(r.tokens), r.call) for r in computed.requests] == [("a", 5, None), ("c", 2, None)]
    assert computed.bad_calls == ()


def test_a_file_without_a_valid_line_is_refused(write_jsonl: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="none of its 1 lines is valid"):
        read(write_jsonl({"custom_id": "a"}))
