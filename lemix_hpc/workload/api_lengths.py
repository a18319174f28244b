"""The length in tokens of a call of the OpenAI API and its class, as far as they are known before a server has read it."""

from __future__ import annotations

from typing import Any

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.policy.classes import ServiceClass
from lemix_hpc.workload.call_body import number, sequences
from lemix_hpc.workload.chat import EndlessTemplateError
from lemix_hpc.workload.openai_batch import DEFAULT_OUTPUT_TOKENS
from lemix_hpc.workload.tokenizer import ChatTokenizer, Tokenizer, model_config

GENERATING = ("/v1/completions", "/v1/chat/completions")
"""The calls that generate tokens."""

USUAL_CONTEXT = 2048
_LIMITS = ("max_completion_tokens", "max_tokens")
_PORTION = 16
"""Characters for each token of the context that are tokenised at a time. Texts that fit are whole."""


def call_lengths(path: str, body: dict[str, Any], tokenizer: Tokenizer, context: int) -> tuple[int, int]:
    """(tokens of all prompts together, most tokens of all answers together), each at least 1.

    `path`: one of `GENERATING`; `body`: the decoded JSON; `context`: tokens that the model takes at once. A prompt is
    at most `context`, and an answer at most what the prompt leaves of it. For a body that the server will refuse, only
    the readable parts count. Defaults are OpenAI's: 16 tokens for a completion, the rest of the context for a chat.

    Raises ValueError for a chat with which the model's template does not come to its end.
    """
    prompts = [max(1, min(tokens, context)) for tokens in _prompts(body, tokenizer, context)] or [1]
    limits = [limit for name in _LIMITS if (limit := number(body.get(name))) is not None]
    limit = limits[0] if limits else DEFAULT_OUTPUT_TOKENS if path == "/v1/completions" else context
    each = sequences(body) // len(prompts)
    answers = sum(each * max(1, min(limit, context - prompt)) for prompt in prompts)
    return sum(prompts), answers


def call_class(body: dict[str, Any]) -> ServiceClass:
    """Of a call with this decoded JSON: OpenAI's `service_tier: flex` asks for less, and later."""
    return "batch" if body.get("service_tier") == "flex" else "interactive"


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


def _prompts(body: dict[str, Any], tokenizer: Tokenizer, context: int) -> list[int]:
    """Tokens of each prompt."""
    if isinstance(body.get("messages"), list):
        return [_chat_tokens(body["messages"], tokenizer, context)]
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return [_text_tokens(prompt, tokenizer, context)]
    if not isinstance(prompt, list):
        return []
    if any(isinstance(item, str | list) for item in prompt):
        return [_item_tokens(item, tokenizer, context) for item in prompt]
    return [len(prompt)]


def _item_tokens(item: object, tokenizer: Tokenizer, context: int) -> int:
    """A prompt of tokens or of text; anything else will be refused."""
    if isinstance(item, str):
        return _text_tokens(item, tokenizer, context)
    return len(item) if isinstance(item, list) else 1


def _text_tokens(text: str, tokenizer: Tokenizer, context: int) -> int:
    """Of a text that is far too long, no more is read than shows that it is."""
    portion, tokens = _PORTION * context, 0
    for start in range(0, len(text), portion):
        tokens += len(tokenizer.encode(text[start : start + portion]))
        if tokens > context:
            break
    return tokens


def _chat_tokens(messages: list[Any], tokenizer: Tokenizer, context: int) -> int:
    said = [
        {"role": str(message.get("role", "")), "content": _content(message.get("content"))}
        for message in messages
        if isinstance(message, dict)
    ]
    text = sum(_text_tokens(message["content"], tokenizer, context) for message in said)
    if isinstance(tokenizer, ChatTokenizer) and text <= context:
        try:
            return len(tokenizer.encode_chat(said, answer=True))
        except EndlessTemplateError:
            raise  # the server would not come to its end either
        except ValueError:
            pass  # the server will say why the template refuses it
    return text


def _content(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))
