import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Model
from lemix_hpc.workload.tokenizer import ByteTokenizer, ChatTokenizer, HuggingFaceTokenizer, load_tokenizer

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'robot' %}{{ raise_exception('no robots') }}{% endif %}"
    "<{{ m.role }}> {{ m.content }} {% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def save_checkpoint(folder: Path, *, vocab_size: int = 300, tokenizer: bool = True, **special: Any) -> Path:
    """A checkpoint directory without weights: a config, and a tokenizer of nine words."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": vocab_size}))
    if tokenizer:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        words = ["</s>", "<unk>", "<", ">", "user", "assistant", "good", "day", "robot"]
        core = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **special).save_pretrained(folder)
    return folder


@given(st.text())
def test_a_token_of_the_byte_level_tokenizer_is_a_byte(text: str) -> None:
    assert bytes(ByteTokenizer().encode(text)).decode() == text


def test_models_without_a_tokenizer_are_byte_level(tmp_path: Path) -> None:
    bare = save_checkpoint(tmp_path / "bare", tokenizer=False)
    for model in (Model(), Model(config={"model_type": "gpt2"}), Model(path=bare)):
        assert isinstance(load_tokenizer(model), ByteTokenizer)


def test_vocabulary_too_small(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vocab_size 256, but the byte-level tokenizer needs 257"):
        load_tokenizer(Model(config={"model_type": "llama", "vocab_size": 256}))
    assert load_tokenizer(Model(config={"model_type": "llama", "vocab_size": 257})).vocab_size == 257
    small = save_checkpoint(tmp_path / "small", vocab_size=8, eos_token="</s>")
    with pytest.raises(UserError, match=r"vocab_size 8, but the tokenizer in .*small needs 9"):
        load_tokenizer(Model(path=small))


def test_checkpoint_tokenizer(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(Model(path=save_checkpoint(tmp_path / "own", eos_token="</s>")))
    assert isinstance(tokenizer, HuggingFaceTokenizer) and not isinstance(tokenizer, ChatTokenizer)
    assert (tokenizer.vocab_size, tokenizer.eos) == (9, 0)
    assert tokenizer.encode("good day") == [6, 7]


def test_chat_template(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "chat", eos_token="</s>", chat_template=CHAT_TEMPLATE)
    tokenizer = load_tokenizer(Model(path=checkpoint))
    assert isinstance(tokenizer, ChatTokenizer)
    question = [{"role": "user", "content": "good day"}]
    assert tokenizer.encode_chat(question, answer=False) == [2, 4, 3, 6, 7]
    assert tokenizer.encode_chat(question, answer=True) == [2, 4, 3, 6, 7, 2, 5, 3]
    with pytest.raises(ValueError, match="the chat template refuses the messages: no robots"):
        tokenizer.encode_chat([{"role": "robot", "content": "good day"}], answer=False)


def test_unusable_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.path: expected a Hugging Face checkpoint directory, but .*config.json"):
        load_tokenizer(Model(path=tmp_path / "absent"))
    broken = save_checkpoint(tmp_path / "broken", eos_token="</s>")
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"broken/tokenizer.json cannot be used: 'added_tokens'"):
        load_tokenizer(Model(path=broken))
    (broken / "config.json").write_text("[")
    with pytest.raises(UserError, match=r"config.json is not a Hugging Face config"):
        load_tokenizer(Model(path=broken))
    with pytest.raises(UserError, match="has no end-of-text token"):
        load_tokenizer(Model(path=save_checkpoint(tmp_path / "endless")))
