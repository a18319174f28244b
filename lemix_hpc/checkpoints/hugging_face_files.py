"""What stands beside the weights in a Hugging Face directory: the config, for readers of any version, and the tokenizer."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lemix_hpc.config.errors import UserError
from lemix_hpc.workload.tokenizer import ByteTokenizer
from lemix_hpc.workload.tokenizer_files import TOKENIZER_FILES

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
_BESIDE_TOKENIZER = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tekken.json",
    "tokenizer.model.v3",
)
_OF_NO_MODEL = (
    "_name_or_path",
    "chunk_size_feed_forward",
    "id2label",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "transformers_version",
)
"""What `transformers` writes of every model, and what would say that a version is needed that is not."""


def write_config(given: Mapping[str, Any], dtype: str, directory: Path, *, byte_level: bool) -> None:
    """`config.json` with all values spelled out, since defaults differ between versions, and the generation config.

    Rotary embeddings are described in the words of transformers 5 (`rope_parameters`) and of those before, which take a base
    that does not stand at the top level for 10000. With the byte-level tokenizer a text ends with its end token, unless the
    config says otherwise.
    """
    config = _complete(given)
    if byte_level:
        ids = {"bos_token_id": None, "eos_token_id": ByteTokenizer.eos, "pad_token_id": None}
        config |= {key: value for key, value in ids.items() if key not in given}
    rope = config.get("rope_parameters")
    if rope is not None:
        config["rope_theta"] = rope["rope_theta"]
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        config["rope_scaling"] = None if rope["rope_type"] == "default" else scaling
    config["architectures"] = [ARCHITECTURES[config["model_type"]]]
    config["dtype"] = config["torch_dtype"] = dtype
    _write_json(config, directory / "config.json")
    generation = directory / "generation_config.json"
    if not generation.exists():
        ids = {key: config.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        _write_json({key: value for key, value in ids.items() if value is not None}, generation)


def copy_tokenizer(source: Path | None, directory: Path) -> bool:
    """Copy the tokenizer of a model's directory, with its chat template and generation config.

    False if the model has none, and was served and trained with the byte-level one: that is written. Raises UserError if the
    directory is gone.
    """
    if source is not None and not source.is_dir():
        raise UserError(
            f"{source}: the model's directory, which has the tokenizer, is not there any more; give a copy of its tokenizer "
            "files with --tokenizer DIR"
        )
    if source is not None:
        for name in (*TOKENIZER_FILES, *_BESIDE_TOKENIZER):
            if (source / name).is_file():
                shutil.copyfile(source / name, directory / name)
        if any((source / name).is_file() for name in TOKENIZER_FILES):
            return True
    _write_byte_level(directory)
    return False


def _complete(given: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import AutoConfig

    settings = copy.deepcopy(dict(given))  # the config adds to what is nested in it
    complete: dict[str, Any] = AutoConfig.for_model(settings.pop("model_type"), **settings).to_dict()
    return {key: value for key, value in complete.items() if key not in _OF_NO_MODEL}


def _write_byte_level(directory: Path) -> None:
    from lemix_hpc.workload.byte_level import byte_level_tokenizer

    byte_level_tokenizer().save_pretrained(directory)
    config = directory / "tokenizer_config.json"
    # The name of the class before transformers 5, which knows both.
    _write_json(json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}, config)


def _write_json(content: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
