"""Three families of chat templates, and a tokenizer that splits text into words and signs as real ones do."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lemix_hpc.workload.byte_level import _byte_vocabulary

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant/user/assistant') }}{% endif %}"
    "{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% else %} {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
MARKED = {
    CHATML: CHATML.replace(
        "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n",
        "<|im_start|>{{ message.role }}\n{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>"
        "{% endgeneration %}{% else %}{{ message.content }}<|im_end|>{% endif %}{{ '\n' }}",
    ),
    LLAMA_3: LLAMA_3.replace(
        "{{ message.content | trim }}<|eot_id|>",
        "{% if message.role == 'assistant' %}{% generation %}{{ message.content | trim }}<|eot_id|>{% endgeneration %}"
        "{% else %}{{ message.content | trim }}<|eot_id|>{% endif %}",
    ),
    MISTRAL: MISTRAL.replace(
        "{% else %} {{ message.content }}{{ eos_token }}",
        "{% else %}{% generation %} {{ message.content }}{{ eos_token }}{% endgeneration %}",
    ),
}
"""The same with generation markers."""

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
EOS = {CHATML: "<|im_end|>", LLAMA_3: "<|eot_id|>", MISTRAL: "</s>"}
WORDS = ("user", "assistant", "system", "INST", " the", " and", "an", "ass")


def tokenizer(template: str, eos: str = "</s>") -> Any:
    """Byte-level BPE that knows a few words, with the special tokens of all three families."""
    vocabulary, merges = _byte_vocabulary(), []
    for word in WORDS:
        made = _visible(word[0])
        for letter in map(_visible, word[1:]):
            merges += [(made, letter)] if (made, letter) not in merges else []
            made += letter
            vocabulary.setdefault(made, len(vocabulary))
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    fast = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token=eos)
    fast.chat_template = template
    return fast


def by_hand(fast: Any, *pieces: tuple[str, bool]) -> tuple[list[int], list[bool]]:
    """Tokens of text that was written out by hand, in pieces that are learnt or not."""
    ids = [(token, learnt) for text, learnt in pieces for token in fast.encode(text, add_special_tokens=False)]
    return [token for token, _ in ids], [learnt for _, learnt in ids]


def _visible(letter: str) -> str:
    return "Ġ" if letter == " " else letter
