import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.config.api_keys import ALONE, RIGHTS, read_keys
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import load_recipe, resolved_yaml
from lemix_hpc.config.recipe import Recipe

SEVERAL = """
keys:
  - {name: alice, key: " one-secret "}
  - {name: bob, key: other-secret, rights: [train], requests_per_s: 2, tokens_per_min: 600}
"""


def written(directory: Path, content: str | bytes, mode: int = 0o600) -> Path:
    path = directory / "keys"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def test_a_key_alone_may_do_everything(tmp_path: Path) -> None:
    (key,) = read_keys(written(tmp_path, "  a-long: secret \n"))
    assert (key.name, key.key, key.rights, key.requests_per_s) == (ALONE, "a-long: secret", list(RIGHTS), None)


def test_several_have_names_rights_and_limits(tmp_path: Path) -> None:
    alice, bob = read_keys(written(tmp_path, SEVERAL))
    assert (alice.key, alice.rights) == ("one-secret", list(RIGHTS))
    assert (bob.rights, bob.requests_per_s, bob.tokens_per_min) == (["train"], 2.0, 600.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "an empty key would let everybody in"),
        (" \n", "an empty key would let everybody in"),
        pytest.param("x" * ((1 << 20) + 1), "has more than 1 MB", id="long"),
        ("tab\there", "one line of printable characters"),
        (b"a\x00b", "characters that cannot be printed"),
        (b"\xff\xfe", "not a text file in UTF-8"),
        ("keys:\n  - name: a\n", r"keys\.0\.key: Field required"),
        ("keys:\n", "keys: .*needs `keys:` with `name` and `key` of each"),
        ("a: 1\nb: 2\n", "keys: Field required"),
        ("keys:\n  - {name: a, key: x}\n  - {name: a, key: y}\n", "two keys have the same name"),
        ("keys:\n  - {name: a, key: x}\n  - {name: b, key: x}\n", "are the same key"),
        ("keys:\n  - {name: a b, key: x}\n", r"keys\.0\.name"),
        (
            "keys:\n  - {name: a, key: s3cret, rights: [read]}\n",
            r"rights\.0: Input should be 'serve', 'train' or 'metrics'",
        ),
        ("keys:\n  - {name: a, key: s3cret, requests_per_s: 0}\n", r"requests_per_s: Input should be greater than 0"),
        ("keys:\n  - {name: a, key: s3cret, other: 1}\n", r"other: Extra inputs"),
        ("keys: [\n\n", "not valid YAML|expected"),
        ("keys:\n  - {name: a, key: *s3cret}\n", "keys:2: not valid YAML; put keys into quotes"),
        ("keys:\n  - {name: a, key: !s3cret}\n", "not valid YAML; put keys into quotes"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_without_a_key(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        read_keys(written(tmp_path, content))
    assert "s3cret" not in str(told.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(UserError, match="chmod 600"):
        read_keys(written(tmp_path, "key", mode))


def test_a_file_that_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_keys(tmp_path / "none")
    with pytest.raises(UserError, match="Is a directory"):
        read_keys(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for odd in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(UserError, match="in an ordinary file"):
            read_keys(odd)


def recipe(tmp_path: Path, http: dict[str, Any]) -> Path:
    path = tmp_path / "recipe.yaml"
    config = {"model_type": "llama", "max_position_embeddings": 64}
    content = {"name": "x", "model": {"config": config}, "engine": {"kind": "vllm"}, "serving": {"http": http}}
    path.write_text(__import__("yaml").safe_dump(content))
    return path


def test_a_recipe_is_written_without_its_key(tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path, {"api_key": " s3cret "}))
    assert loaded.serving is not None and loaded.serving.http is not None and loaded.serving.http.api_key == "s3cret"
    assert "s3cret" not in resolved_yaml(loaded) + repr(loaded) + str(loaded)
    path = recipe(tmp_path, {"api_key_file": "my-keys"})
    assert f"api_key_file: {tmp_path}/my-keys" in resolved_yaml(load_recipe(path))


@pytest.mark.parametrize(
    ("http", "message"),
    [
        ({"api_key": ""}, "an empty key would let everybody in"),
        ({"api_key": "  "}, "an empty key would let everybody in"),
        ({"api_key": "a\nb"}, "one line of printable characters"),
        ({"api_key": "a", "api_key_file": "b"}, "remove one of them"),
    ],
)
def test_keys_that_a_recipe_may_not_have(tmp_path: Path, http: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(recipe(tmp_path, http))


@pytest.mark.parametrize("override", ["serving.http.api_key=s3cret", "serving.http={api_key: s3cret}"])
def test_no_key_on_a_command_line(tmp_path: Path, override: str) -> None:
    with pytest.raises(UserError, match="LEMIX_API_KEY") as told:
        load_recipe(recipe(tmp_path, {}), [override])
    assert "s3cret" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("api_key", "set serving.http.api_key_file"), ("port", "set serving.http.port"), ("middleware", "remove it"),
     ("ssl_keyfile", "remove it")],
)  # fmt: skip
def test_vllm_does_not_decide_over_the_endpoint(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate({"engine": {"kind": "vllm", "vllm": {"args": {name: "x"}}}})


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: f"keys:\n  - {text}\n".encode()))
def test_whatever_is_in_a_file_of_keys(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory, contextlib.suppress(UserError):
        for key in read_keys(written(Path(directory), content)):
            assert key.key and key.key == key.key.strip()
