"""What the inputs of docs/inputs.md are that are no `--set`: each makes files in a directory and returns the arguments of
`lemix`."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

REPOSITORY = Path(__file__).resolve().parents[2]
COEFFICIENTS = REPOSITORY / "profiling" / "nvidia-a100-80gb" / "llama-2-7b-float16.yaml"

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 257,
    "max_position_embeddings": 256,
}
EMULATED = f"""\
name: toy
nodes: {{stages: 2}}
engine: {{kind: emulated, coefficients: {COEFFICIENTS}}}
serving:
  source: {{kind: poisson, rate: 50, requests: 5}}
training: {{share: 0.3}}
"""
COMPUTING = """\
name: toy
nodes: {{stages: 2}}
engine: {{kind: {kind}, device: cpu}}
model: {{config: {model}}}
serving:
  source: {{kind: poisson, rate: 50, requests: 5}}
training: {{share: 0.3, data: {{path: text.jsonl}}, sequence_length: 8}}
"""
RUN = ["run", "recipe.yaml", "--cluster", "local"]

Arguments = list[str]


def write_recipe(directory: Path, kind: str) -> Arguments:
    """A recipe without mistakes, and its text."""
    (directory / "text.jsonl").write_text('{"text": "one two three four five six"}\n')
    computing = COMPUTING.format(kind=kind, model=json.dumps(LLAMA))
    (directory / "recipe.yaml").write_text(EMULATED if kind == "emulated" else computing)
    return [*RUN, "--dry-run"]


def set_to(key: str, value: str, kind: str = "emulated") -> Callable[[Path], Arguments]:
    return lambda directory: [*write_recipe(directory, kind), "--set", f"{key}={value}"]


def recipe_of(content: bytes | str) -> Callable[[Path], Arguments]:
    """Another recipe, with these bytes."""

    def make(directory: Path) -> Arguments:
        arguments = write_recipe(directory, "emulated")
        (directory / "recipe.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
        return arguments

    return make


def file_of(name: str, content: bytes | str, then: Callable[[Path], Arguments]) -> Callable[[Path], Arguments]:
    def make(directory: Path) -> Arguments:
        arguments = then(directory)
        (directory / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return arguments

    return make


def parquet(
    columns: dict[str, list[Any]],
    arguments: Callable[[Path], Arguments],
    *,
    cell: int | None = None,
    then: Callable[[Path], None] = lambda _: None,
) -> Callable[[Path], Arguments]:
    """`table.parquet`. `cell`: the bytes that its only cell has by the file's footer, which is what is looked at."""

    def make(directory: Path) -> Arguments:
        table, writer = pytest.importorskip("pyarrow").table, pytest.importorskip("pyarrow.parquet")
        path = directory / "table.parquet"
        if cell is None:
            writer.write_table(table(columns), path)
        else:
            writer.write_table(table({name: ["x" * 40_000] for name in columns}), path, compression="zstd")
            size = writer.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size
            content = path.read_bytes()
            length = int.from_bytes(content[-8:-4], "little")
            footer = content[-8 - length : -8].replace(_varint(size), _varint(cell))
            path.write_bytes(content[: -8 - length] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
            assert writer.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size == cell
        then(directory)
        return arguments(directory)

    return make


def _varint(number: int) -> bytes:
    """As Thrift writes a signed one that is not negative."""
    left, parts = 2 * number, []
    while left > 127:
        parts.append(left & 127 | 128)
        left >>= 7
    return bytes([*parts, left])


def pipe(name: str, then: Callable[[Path], Arguments]) -> Callable[[Path], Arguments]:
    def make(directory: Path) -> Arguments:
        arguments = then(directory)
        (directory / name).unlink(missing_ok=True)
        os.mkfifo(directory / name)
        return arguments

    return make


def gigabyte(name: str, then: Callable[[Path], Arguments]) -> Callable[[Path], Arguments]:
    """One line, which takes no room on the disk."""

    def make(directory: Path) -> Arguments:
        arguments = then(directory)
        with (directory / name).open("wb") as file:
            file.truncate(1 << 30)
        return arguments

    return make


def closed(then: Callable[[Path], Arguments]) -> Callable[[Path], Arguments]:
    """With a directory `closed`, which the user may not look into."""

    def make(directory: Path) -> Arguments:
        arguments = then(directory)
        (directory / "closed").mkdir()
        for name in ("other.yaml", "other.jsonl", "trace"):
            (directory / "closed" / name).touch()
        (directory / "closed").chmod(0)
        return arguments

    return make


def unix_socket(name: str, then: Callable[[Path], Arguments]) -> Callable[[Path], Arguments]:
    def make(directory: Path) -> Arguments:
        arguments = then(directory)
        with socket.socket(socket.AF_UNIX) as made:
            before = Path.cwd()
            os.chdir(directory)
            try:
                made.bind(name)
            finally:
                os.chdir(before)
        return arguments

    return make


def trace(kind: str, content: bytes | str) -> Callable[[Path], Arguments]:
    """A trace file as the source of requests."""
    source = set_to("serving.source", f"{{kind: {kind}, path: trace}}")
    return file_of("trace", content, source)


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURST = "Timestamp,Request tokens,Response tokens\n"


# Checkpoints


def _tensors(layers: int = 2, vocab: int = 257) -> dict[str, np.ndarray]:
    named = {"model.embed_tokens.weight": np.zeros((vocab, 16), np.float32)}
    return named | {f"model.layers.{n}.mlp.up_proj.weight": np.zeros((32, 16), np.float32) for n in range(layers)}


def checkpoint(
    config: dict[str, object] | bytes | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    index: object = None,
    then: Callable[[Path], None] = lambda _: None,
    kind: str = "torch",
) -> Callable[[Path], Arguments]:
    """A directory `model` with these, and what `then` does to it. With an `index` the tensors are in two files."""

    def make(directory: Path) -> Arguments:
        arguments = write_recipe(directory, kind)
        model = directory / "model"
        model.mkdir()
        (model / "config.json").write_bytes(
            config if isinstance(config, bytes) else json.dumps(LLAMA | (config or {})).encode()
        )
        some = _tensors() if tensors is None else tensors
        if index is None:
            save_file(some, model / "model.safetensors")
        else:
            names = list(some)
            save_file({names[0]: some[names[0]]}, model / "a.safetensors")
            save_file({name: some[name] for name in names[1:]}, model / "b.safetensors")
            content = {"weight_map": {name: "b.safetensors" if n else "a.safetensors" for n, name in enumerate(names)}}
            (model / "model.safetensors.index.json").write_text(json.dumps(content if index is True else index))
        then(model)
        return [*arguments, "--set", "model={path: model}"]

    return make


def cut(name: str) -> Callable[[Path], None]:
    def do(model: Path) -> None:
        with (model / name).open("r+b") as file:
            file.truncate((model / name).stat().st_size - 100)

    return do


def sparse(name: str) -> Callable[[Path], None]:
    """1 GB, which takes no room on the disk."""

    def do(directory: Path) -> None:
        with (directory / name).open("wb") as file:
            file.truncate(1 << 30)

    return do


def resume(then: Callable[[Path], None]) -> Callable[[Path], Arguments]:
    """`training.resume` of a directory with what `then` makes there."""

    def make(directory: Path) -> Arguments:
        (directory / "saved").mkdir()
        (directory / "saved" / "manifest.json").touch()
        then(directory / "saved")
        return set_to("training.resume", "saved", "torch")(directory)

    return make


def without(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


def writes(name: str, content: bytes) -> Callable[[Path], None]:
    def do(model: Path) -> None:
        (model / name).write_bytes(content)

    return do


def closed_file(name: str) -> Callable[[Path], None]:
    """That the user may not read."""
    return lambda model: (model / name).chmod(0)


def pipe_for(name: str) -> Callable[[Path], None]:
    """In the place of a file."""

    def do(model: Path) -> None:
        (model / name).unlink(missing_ok=True)
        os.mkfifo(model / name)

    return do


def beside_a_tokenizer(name: str, content: bytes) -> Callable[[Path], None]:
    """A tokenizer in order, and another file that has this."""

    def do(model: Path) -> None:
        with_tokenizer(257)(model)
        (model / name).write_bytes(content)

    return do


def with_tokenizer(tokens: int) -> Callable[[Path], None]:
    """A tokenizer of so many words."""

    def do(model: Path) -> None:
        words = {f"w{n}": n for n in range(tokens - 1)} | {"</s>": tokens - 1}
        model_ = {"type": "WordLevel", "vocab": words, "unk_token": "w0"}
        content = {"version": "1.0", "added_tokens": [], "model": model_}
        (model / "tokenizer.json").write_text(json.dumps(content))
        (model / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"})
        )

    return do
