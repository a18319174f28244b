import json
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lemix_hpc.config.recipe import Model
from lemix_hpc.engines.vllm.model_files import model_directory, tokenizer_directory
from lemix_hpc.workload.byte_level import byte_level_tokenizer
from lemix_hpc.workload.tokenizer import ByteTokenizer

CONFIG = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 257}
OURS, THEIRS = ByteTokenizer(), byte_level_tokenizer()


@example("<|end|>")
@given(st.text())
def test_both_forms_of_the_byte_level_tokenizer_agree(text: str) -> None:
    assert THEIRS.encode(text) == OURS.encode(text)
    assert THEIRS.decode(OURS.encode(text)) == text


def test_a_model_without_a_checkpoint_gets_what_vllm_reads(tmp_path: Path) -> None:
    model = Model(config=CONFIG)
    directory = model_directory(model, tmp_path)
    assert tokenizer_directory(model, tmp_path) == directory
    assert json.loads((directory / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.eos_token_id == OURS.eos
    assert tokenizer.encode("<|end|>") == OURS.encode("<|end|>")
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "user: hi\nassistant: "


def test_a_checkpoint_without_a_tokenizer_gets_the_byte_level_one(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(json.dumps(CONFIG))
    model = Model(path=checkpoint)
    assert model_directory(model, tmp_path) == checkpoint
    assert len(AutoTokenizer.from_pretrained(tokenizer_directory(model, tmp_path))) == 257
