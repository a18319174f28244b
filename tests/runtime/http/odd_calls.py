"""The calls of docs/inputs.md by their names there, as what clients send."""

from __future__ import annotations

import json
from typing import Any

NESTED = {deep: b'{"a":' * deep + b"1" + b"}" * deep for deep in (400, 1000, 100_000)}


def body(**content: Any) -> bytes:
    return json.dumps({"prompt": "hi"} | content).encode()


REFUSED: dict[str, list[bytes]] = {
    'any call with `"top_k": 18446744073709551616`, or another integer beyond 64 bits at any depth': [
        body(top_k=1 << 64),
        body(seed=-(1 << 63) - 1),
        body(logit_bias={"1": [1 << 70]}),
    ],
    "an integer of 5,000 digits": [b'{"prompt": "hi", "max_tokens": ' + b"9" * 5000 + b"}"],
    "a key nested 65, 400, 1,000 or 100,000 deep, in objects or arrays, in any call, `/tokenize` or samples": [
        *(b'{"prompt": "hi", "x": %s}' % NESTED[deep] for deep in NESTED),
        b'{"prompt": "hi", "x": ' + b"[" * 65 + b"]" * 65 + b"}",
    ],
    "no body, `null`, a string, two objects, `NaN`, `1e999`, bytes that are not UTF-8, a byte order mark, half a surrogate "
    "pair": [
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\xff"}',
        b'\xef\xbb\xbf{"prompt": "hi"}',
        b'{"prompt": "hi", "temperature": NaN}',
        b'{"prompt": "hi", "temperature": 1e999}',
        b"",
        b"null",
        b'"a text"',
        b'{"prompt": "hi"} {}',
    ],
    '`"n": 16384`, `"16384"` or `129.0`': [body(n=16384), body(n="16384"), body(n=129.0)],
    '10,000 prompts; 65 prompts with `"n": 2`': [body(prompt=["hi"] * 10_000), body(prompt=[[1]] * 65, n=2)],
    "`structured_outputs`, `response_format`, `tools` or `guided_*` of more than 64 KiB": [
        body(structured_outputs={"regex": "a" * 70_000}),
        body(response_format={"type": "json_schema", "x": ["a"] * 20_000}),
        body(tools=["a" * 70_000]),
        body(guided_grammar="a" * 70_000),
    ],
    "`structured_outputs` that is text, a number or a list": [
        body(structured_outputs="a"),
        body(structured_outputs=1),
        body(structured_outputs=[]),
    ],
}
"""What the endpoint refuses itself, with the message of the row."""

_LARGE = (1 << 31, -(1 << 31), 1 << 32, 1 << 40, (1 << 63) - 1, -(1 << 63), -1)
_CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
_CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}

ODD_VALUES: dict[str, list[dict[str, Any]]] = {
    "`top_k`, `seed`, `min_tokens`, `logprobs`, `prompt_logprobs`, `truncate_prompt_tokens`, `priority`, `best_of` and "
    "`thinking_token_budget` of ±2^31, 2^32, 2^40, ±2^63 and -1": [
        {name: value}
        for name in (
            *("top_k", "seed", "min_tokens", "logprobs", "prompt_logprobs", "truncate_prompt_tokens", "priority"),
            *("best_of", "thinking_token_budget"),
        )
        for value in _LARGE
    ],
    "`logit_bias`, `allowed_token_ids`, `stop_token_ids`, prompts of tokens outside the vocabulary, negative, or 2^40": [
        given
        for token in (100_000, -1, 1 << 40)
        for given in (
            {"logit_bias": {str(token): 1.0}},
            {"allowed_token_ids": [token]},
            {"stop_token_ids": [token]},
            {"prompt": [token]},
        )
    ],
    "`temperature`, `top_p`, `repetition_penalty` of 10^308 and 10^-308": [
        {name: value} for name in ("temperature", "top_p", "repetition_penalty") for value in (1e308, 1e-308)
    ],
    "`prompt_embeds`, `kv_transfer_params`, `vllm_xargs`, `cache_salt` of 100,000 characters, `request_id` of another call": [
        {"prompt_embeds": "AAAA"},
        {"kv_transfer_params": {"a": 1}},
        {"vllm_xargs": {"a": 1}},
        {"cache_salt": "x" * 100_000},
        *[{"request_id": "same"}] * 2,
    ],
    "a chat template in the request that counts to 10^8": [
        _CHAT | {"chat_template": "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}"}
    ],
    "an image for a model of text": [{"messages": [{"role": "user", "content": [_IMAGE]}]}],
    "an answer of tool calls without content": [
        {"messages": [*_CHAT["messages"], {"role": "assistant", "content": None, "tool_calls": [_CALL]}]},
    ],
}
"""What is left to vLLM, which gives one of the statuses of the row. With `messages` it is a chat."""
