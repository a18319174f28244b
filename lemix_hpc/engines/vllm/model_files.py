"""The files that vLLM wants of a model: those of its checkpoint, or made from what the recipe says."""

from __future__ import annotations

from pathlib import Path

import msgspec
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lemix_hpc.config.recipe import Model
from lemix_hpc.engines.model_sizes import model_config
from lemix_hpc.workload.tokenizer import ByteTokenizer, load_tokenizer

END = "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}


def model_directory(model: Model, scratch: Path) -> Path:
    """The checkpoint's directory, or one below `scratch` with the config of a model without a checkpoint."""
    return model.path or _written(model, scratch)


def tokenizer_directory(model: Model, scratch: Path) -> Path:
    """The checkpoint's directory, or one below `scratch` with the byte-level tokenizer where the model brings none."""
    if model.path is not None and not isinstance(load_tokenizer(model), ByteTokenizer):
        return model.path
    return _written(model, scratch)


def _written(model: Model, scratch: Path) -> Path:
    """Config and byte-level tokenizer; vLLM looks for a config beside a tokenizer, too."""
    directory = scratch / "model"
    directory.mkdir(exist_ok=True)
    config = dict(model_config(model))
    config.setdefault("architectures", [ARCHITECTURES[config["model_type"]]])
    (directory / "config.json").write_bytes(msgspec.json.encode(config))
    byte_level_tokenizer().save_pretrained(directory)
    return directory


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
