from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.workload.api_lengths import call_lengths, context_of
from lemix_hpc.workload.tokenizer import ByteTokenizer

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (COMPLETIONS, {"prompt": "hello"}, (5, 16)),
        (COMPLETIONS, {"prompt": [1, 2, 3], "max_tokens": 7}, (3, 7)),
        (COMPLETIONS, {"prompt": ["hello", "you"], "max_tokens": 7}, (8, 14)),
        (COMPLETIONS, {"prompt": ["x" * 95, "you"], "max_tokens": 7.0, "n": "3"}, (98, 36)),
        (COMPLETIONS, {"prompt": [[1, 2], [3]]}, (3, 32)),
        (CHAT, {"messages": [{"content": "a"}], "max_tokens": "1000000000", "n": 2}, (1, 198)),
        (COMPLETIONS, {"prompt": "x" * 95, "max_tokens": 50}, (95, 5)),
        (COMPLETIONS, {"prompt": "x" * 500, "max_tokens": 50}, (100, 1)),
        (COMPLETIONS, {"prompt": {"odd": 1}, "max_tokens": "many"}, (1, 16)),
        (COMPLETIONS, {}, (1, 16)),
        (COMPLETIONS, {"prompt": "", "max_tokens": True}, (1, 16)),
        (CHAT, {"messages": [{"role": "user", "content": "hello"}]}, (5, 95)),
        (CHAT, {"messages": [{"content": [{"type": "text", "text": "hel"}, {"text": "lo"}]}], "max_tokens": 1}, (5, 1)),
        (CHAT, {"messages": [{"content": "a"}], "max_tokens": 9, "max_completion_tokens": 4}, (1, 4)),
        (CHAT, {"messages": [None, 3, {"content": None}, {"content": [1, {"image_url": "x"}]}]}, (1, 99)),
    ],
)
def test_lengths(path: str, body: dict[str, Any], expected: tuple[int, int]) -> None:
    assert call_lengths(path, body, ByteTokenizer(), 100) == expected


def test_a_chat_template_counts_unless_it_refuses() -> None:
    class Templated(ByteTokenizer):
        def encode_chat(self, messages: Sequence[dict[str, str]], *, answer: bool) -> list[int]:
            if messages[0]["role"] != "user":
                raise ValueError("refused")
            return self.encode("".join(message["content"] for message in messages) + "!" * 10 * answer)

    for role, length in (("user", 15), ("assistant", 5)):
        body = {"messages": [{"role": role, "content": "hello"}], "max_tokens": 1}
        assert call_lengths(CHAT, body, Templated(), 100) == (length, 1)


def test_context_is_vllms_setting_or_the_models_positions(tmp_path: Path) -> None:
    def recipe(config: dict[str, Any], **args: Any) -> Recipe:
        return Recipe.model_validate({"model": {"config": config}, "engine": {"kind": "vllm", "vllm": {"args": args}}})

    llama = {"model_type": "llama", "max_position_embeddings": 512}
    assert context_of(recipe(llama)) == 512
    assert context_of(recipe(llama, max_model_len=64)) == 64
    assert context_of(recipe({"model_type": "gpt2", "n_positions": 48})) == 48
    assert context_of(recipe({"model_type": "llama"})) == 2048
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 77}')
    assert context_of(Recipe.model_validate({"model": {"path": str(tmp_path)}})) == 77
