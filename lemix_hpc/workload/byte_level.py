"""The byte-level tokenizer in Hugging Face's form, for programs that read a directory."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lemix_hpc.workload.tokenizer import END

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """`ByteTokenizer` in Hugging Face's form: the same ids, and a plain chat template."""
    tokenizer = Tokenizer(models.BPE(vocab=_byte_vocabulary(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    # Text that reads like the end token is text, as it is for `ByteTokenizer`.
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END, split_special_tokens=True)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _byte_vocabulary() -> dict[str, int]:
    """The visible characters by which byte-level tokenizers write the bytes 0 to 255, each with its byte's value."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + place): byte for place, byte in enumerate(hidden)}
