"""Whatever is in the files that a checkpoint brings for its tokenizer, its chats and its generation: a mistake is told by the
name of the file, in time, and never by a traceback."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Model
from lemix_hpc.workload import model_trial
from lemix_hpc.workload.chat import EndlessTemplateError, rendered
from lemix_hpc.workload.model_trial import check_generation, check_template
from lemix_hpc.workload.tokenizer import ChatTokenizer, ConversationTokenizer, own_tokenizer
from tests.inputs.test_anything import BYTES, VALUES
from tests.workload.chat_templates import CHATML, MARKED, tokenizer

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ok"}]
GENERATION = {
    "temperature": 0.6,
    "top_p": 0.9,
    "top_k": 50,
    "do_sample": True,
    "eos_token_id": [5, 6],
    "max_new_tokens": 9,
}


def files() -> dict[str, bytes]:
    """Of a checkpoint in which nothing is wrong, apart from its weights."""
    with tempfile.TemporaryDirectory() as directory:
        tokenizer(MARKED[CHATML]).save_pretrained(directory)
        found = {path.name: path.read_bytes() for path in Path(directory).iterdir()}
    special = {"eos_token": "</s>", "bos_token": {"content": "<s>", "lstrip": False}}
    return found | {
        "special_tokens_map.json": json.dumps(special).encode(),
        "generation_config.json": json.dumps(GENERATION).encode(),
        "config.json": b'{"model_type": "llama", "vocab_size": 400}',
    }


GOOD = files()
NAMES = [
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
]
"""Of those that are tried."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of long lists and objects the first few."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in list(inside)[:20] for place in places(inner, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], by)
    return copy


@st.composite
def damaged(draw: st.DrawFn, name: str) -> bytes:
    """Other bytes, a part, some bytes changed, or another value somewhere in it."""
    good = GOOD[name]
    kind = draw(st.sampled_from(["any", "cut", "flipped", "value", "value"]))
    if kind == "any":
        return draw(BYTES | VALUES.map(lambda value: json.dumps(value).encode()))
    if kind == "cut":
        return good[: draw(st.integers(0, len(good) - 1))]
    if kind == "value" and name.endswith(".json"):
        content = json.loads(good)
        path = draw(st.sampled_from(places(content)))
        return json.dumps(replaced(content, path, draw(VALUES))).encode()
    changed = bytearray(good)
    for at, byte in draw(
        st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), min_size=1, max_size=5)
    ):
        changed[at] = byte
    return bytes(changed)


def use(path: Path) -> None:
    """As a run does. Raises UserError."""
    model = Model(path=path)
    check_template(model)
    check_generation(model)
    loaded = own_tokenizer(model)
    loaded.decode(loaded.encode("hello you"))
    with suppress(ValueError):
        if isinstance(loaded, ChatTokenizer):
            loaded.encode_chat(TALK, answer=True)
    with suppress(ValueError):
        if isinstance(loaded, ConversationTokenizer):
            loaded.encode_conversation(TALK, ())


def put(path: Path, content: dict[str, bytes]) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, each in content.items():
        (path / name).write_bytes(each)


@settings(max_examples=40)
@given(st.sampled_from(NAMES).flatmap(lambda name: st.tuples(st.just(name), damaged(name))))
def test_any_content_of_a_file_is_taken_or_refused_by_its_name(directory: Path, changed: tuple[str, bytes]) -> None:
    name, content = changed
    put(directory / "model", GOOD | {name: content})
    begun = time.process_time()
    try:
        use(directory / "model")
    except UserError as error:
        assert name in str(error) or "end-of-text token" in str(error)
    assert time.process_time() - begun < 10


def test_a_checkpoint_without_mistakes_is_taken(tmp_path: Path) -> None:
    put(tmp_path / "model", GOOD)
    use(tmp_path / "model")


BAD_TEMPLATES = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "doubles": "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n else '' }}{% endmacro %}{{ f(60) }}",
    "a large number": "{{ 9 ** (9 ** 9) }}",
    "a long text": "{{ 'x' * 10 ** 11 }}",
    "a long list": "{{ (range(1000) | list) * 10 ** 8 }}",
    "no template": "{% for a in messages %}",
}
REASONS = {
    "loops": "does not come to its end within 300000 steps",
    "doubles": "does not come to its end within 300000 steps",
    "a large number": "takes more than 1 s for a conversation of two messages",
    "a long text": "takes more than 1024 MiB",
    "a long list": "takes more than 1024 MiB",
    "no template": "cannot be compiled: line 1: Unexpected end of template",
}


@pytest.mark.parametrize("name", BAD_TEMPLATES)
def test_a_template_that_costs_too_much_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_trial, "CPU_S", 1)
    put(tmp_path / "model", GOOD | {"chat_template.jinja": BAD_TEMPLATES[name].encode()})
    with pytest.raises(UserError, match=rf"model.path: the chat template in .*chat_template.jinja {REASONS[name]}"):
        check_template(Model(path=tmp_path / "model"))


def test_a_template_that_takes_ever_longer_for_more_messages_is_cut_off_where_it_is_used() -> None:
    doubling = "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n else '' }}{% endmacro %}{{ f(messages | length) }}"
    fast = tokenizer(doubling)
    assert rendered(fast, TALK, answer=False) == ""
    with pytest.raises(EndlessTemplateError, match="does not come to its end within 300000 steps"):
        rendered(fast, TALK * 20, answer=False)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"temperature": "hot"}, "Expected `float | null`, got `str` - at `$.temperature`"),
        ({"temperature": -1}, "Expected `float` >= 0.0 - at `$.temperature`"),
        ({"eos_token_id": {"a": 1}}, "Expected `int | array | null`, got `object` - at `$.eos_token_id`"),
        ({"max_new_tokens": 0}, "Expected `int` >= 1 - at `$.max_new_tokens`"),
    ],
)
def test_a_generation_config_that_every_call_would_fail_with(
    content: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    put(tmp_path / "model", GOOD | {"generation_config.json": json.dumps(content).encode()})
    with pytest.raises(UserError, match=rf"model.path: .*generation_config.json: {re.escape(reason)}"):
        check_generation(Model(path=tmp_path / "model"))
