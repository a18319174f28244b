import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lemix_hpc.cli.main import app
from lemix_hpc.config.errors import UserError
from tests.cli.conftest import COEFFICIENTS

RECIPE = """\
model:
  config: {{model_type: llama, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, vocab_size: 257}}
engine: {{kind: torch, device: cpu}}
training: {{data: {{path: {data}}}, sequence_length: 40, packing: padded, micro_batches: 1, micro_batch_size: 2}}
"""
TALK = {"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2 é"}]}


def shown(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["data", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


@pytest.fixture
def chat(tmp_path: Path) -> str:
    data = tmp_path / "talks.jsonl"
    data.write_text("\n".join([json.dumps(TALK), json.dumps({"prompt": "q\t", "completion": "a"}), "{}"]))
    (tmp_path / "chat.yaml").write_text(RECIPE.format(data=data))
    return str(tmp_path / "chat.yaml")


def test_rows_as_the_model_gets_them(chat: str) -> None:
    found = json.loads(shown(chat, "--json"))
    assert [message.split(":")[0].rsplit(", ")[1] for message in found["left_out"]] == ["line 3"]
    rows = sorted(found["rows"][:2], key=lambda row: len(row["parts"][0]["tokens"]))
    assert {(row["micro_batch"], row["row"]) for row in rows} == {("t0", 0), ("t0", 1)}
    parts = [[(part["part"], part["text"], len(part["tokens"])) for part in row["parts"]] for row in rows]
    assert parts[0] == [("context", "q\t", 2), ("learnt", "a<|end|>", 2), ("padding", "<|end|>" * 36, 36)]
    prompt = "user: 1 + 1?\nassistant: "
    assert parts[1][:2] == [("context", prompt, 24), ("learnt", "2 é\n", 5)]
    assert [part["tokens"] for part in rows[1]["parts"][:2]] == [[*prompt.encode()], [*"2 é\n".encode()]]


def test_a_table_names_the_parts(chat: str) -> None:
    said = " ".join(shown(chat, "--rows", "2").split())
    assert "left out: " in said and "line 3" in said
    assert "5 of 40 tokens are learnt" in said and "2 of 40 tokens are learnt" in said
    assert "learnt 5 50 32 195 169 10 2 é\\n" in said
    assert "context 2 113 9 q\\t" in said


def test_recipes_without_data_to_show(chat: str, recipe: Path) -> None:
    with pytest.raises(UserError, match=r"the recipe has no training.data"):
        shown(str(recipe))
    emulated = f"engine={{kind: emulated, coefficients: {COEFFICIENTS}}}"
    with pytest.raises(
        UserError, match=r"the emulated engine does not read training.data; add --set engine.kind=torch"
    ):
        shown(chat, "--set", emulated)
