"""The length of a call of the OpenAI API in tokens, as far as it is known before a server has read the call."""

from __future__ import annotations

from typing import Any

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.workload.openai_batch import DEFAULT_OUTPUT_TOKENS
from lemix_hpc.workload.tokenizer import ChatTokenizer, Tokenizer, model_config

GENERATING = ("/v1/completions", "/v1/chat/completions")
"""The calls that generate tokens."""

USUAL_CONTEXT = 2048
_LIMITS = ("max_completion_tokens", "max_tokens")


def call_lengths(path: str, body: dict[str, Any], tokenizer: Tokenizer, context: int) -> tuple[int, int]:
    """(tokens of the prompt or of all prompts together, most tokens of one answer), each at least 1.

    `path`: one of `GENERATING`; `body`: the decoded JSON; `context`: tokens that the model takes at once. The prompt is
    at most `context`, and the answer at most what the prompt leaves of it. For a body that the server will refuse, only
    the readable parts count. Defaults are OpenAI's: 16 tokens for a completion, the rest of the context for a chat.
    """
    prompt = min(max(1, _prompt_tokens(body, tokenizer)), context)
    limits = [limit for name in _LIMITS if isinstance(limit := body.get(name), int) and not isinstance(limit, bool)]
    default = DEFAULT_OUTPUT_TOKENS if path == "/v1/completions" else context
    return prompt, max(1, min(limits[0] if limits else default, context - prompt))


def context_of(recipe: Recipe) -> int:
    """Tokens that vLLM takes at once: its `max_model_len`, or the model's positions.

    Raises UserError if the model's config cannot be read.
    """
    config = model_config(recipe.model)
    sizes = (
        recipe.engine.vllm.args.get("max_model_len"),
        config.get("max_position_embeddings"),
        config.get("n_positions"),
    )
    return next((size for size in sizes if isinstance(size, int)), USUAL_CONTEXT)


def _prompt_tokens(body: dict[str, Any], tokenizer: Tokenizer) -> int:
    if isinstance(body.get("messages"), list):
        return _chat_tokens(body["messages"], tokenizer)
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return len(tokenizer.encode(prompt))
    prompts = prompt if isinstance(prompt, list) else []
    return sum(_item_tokens(item, tokenizer) for item in prompts)


def _item_tokens(item: object, tokenizer: Tokenizer) -> int:
    """A token, a prompt of tokens, or a prompt of text."""
    if isinstance(item, str):
        return len(tokenizer.encode(item))
    return len(item) if isinstance(item, list) else 1


def _chat_tokens(messages: list[Any], tokenizer: Tokenizer) -> int:
    said = [
        {"role": str(message.get("role", "")), "content": _content(message.get("content"))}
        for message in messages
        if isinstance(message, dict)
    ]
    if isinstance(tokenizer, ChatTokenizer):
        try:
            return len(tokenizer.encode_chat(said, answer=True))
        except ValueError:
            pass  # the server will say why the template refuses it
    return sum(len(tokenizer.encode(message["content"])) for message in said)


def _content(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))
