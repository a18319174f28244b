"""The inputs of docs/inputs.md by their names there; those that begin with `--set` speak for themselves."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

from tests.inputs.files import (
    AZURE,
    BURST,
    RUN,
    Arguments,
    beside_a_tokenizer,
    checkpoint,
    closed,
    closed_file,
    cut,
    file_of,
    gigabyte,
    parquet,
    pipe,
    pipe_for,
    recipe_of,
    resume,
    set_to,
    sparse,
    trace,
    unix_socket,
    with_tokenizer,
    without,
    write_recipe,
    writes,
)


def _given(*arguments: str) -> Callable[[Path], Arguments]:
    return lambda directory: [*write_recipe(directory, "emulated"), *arguments]


def _emulated(directory: Path) -> Arguments:
    return write_recipe(directory, "emulated")


def _computing(directory: Path) -> Arguments:
    return write_recipe(directory, "torch")


def _lonely_surrogates(directory: Path) -> Arguments:
    """A recipe in a directory whose name is not UTF-8."""
    odd = directory / os.fsdecode(b"\xff")
    odd.mkdir()
    write_recipe(odd, "emulated")
    with (odd / "recipe.yaml").open("a") as recipe:
        recipe.write("policy: {coefficients: here.yaml}\n")
    return ["run", str(odd / "recipe.yaml"), "--cluster", "local", "--dry-run"]


ODD = "50% für 'mich'; $HOME %s 名"


def _odd_name(directory: Path) -> Arguments:
    write_recipe(directory, "torch")
    odd = directory / ODD
    odd.mkdir()
    (directory / "text.jsonl").rename(odd / f"{ODD}.jsonl")
    recipe = (directory / "recipe.yaml").read_text().replace("text.jsonl", f'"{ODD}.jsonl"')
    (odd / f"{ODD}.yaml").write_text(recipe)
    return ["run", f"{ODD}/{ODD}.yaml", "--cluster", "local", "--dry-run"]


def _occupied(directory: Path) -> Arguments:
    write_recipe(directory, "emulated")
    (directory / "full").mkdir()
    (directory / "full" / "x").touch()
    return [*RUN, "--out", "full"]


def _out(name: str) -> Callable[[Path], Arguments]:
    def make(directory: Path) -> Arguments:
        write_recipe(directory, "emulated")
        return [*RUN, "--out", name]

    return make


TEXT = set_to("training.data", "{path: other.jsonl}", "torch")
PROMPTS = set_to("serving.prompts", "{path: other.jsonl}", "torch")
FIT: Callable[[Path], Arguments] = lambda _: ["fit", "points.csv"]  # noqa: E731
TABLE = set_to("training.data", "{path: table.parquet}", "torch")
TABLE_OF_PROMPTS = set_to("serving.prompts", "{path: table.parquet}", "torch")
BATCH = set_to("serving.source", "{kind: openai-batch, path: other.jsonl}", "torch")
BUSY = "".join(f"{10_000 + tenth / 10},5,5\n" for tenth in range(10_000))


def _closed_text(directory: Path) -> Arguments:
    arguments = file_of("other.jsonl", "", TEXT)(directory)
    closed_file("other.jsonl")(directory)
    return arguments


def template(content: str | bytes) -> Callable[[Path], Arguments]:
    """A chat template with this."""
    text = content.encode() if isinstance(content, str) else content
    return checkpoint(then=beside_a_tokenizer("chat_template.jinja", text))


def generation(content: bytes) -> Callable[[Path], Arguments]:
    return checkpoint(then=writes("generation_config.json", content), kind="vllm")


TIMES = set_to("engine.coefficients", "other.yaml")

CASES: dict[str, Callable[[Path], Arguments]] = {
    # Recipe files
    "a recipe that is a pipe": pipe("recipe.yaml", _emulated),
    "`/dev/zero` as recipe": lambda _: ["run", "/dev/zero", "--cluster", "local"],
    "a Unix socket as recipe": unix_socket("other.yaml", lambda d: [*_emulated(d)[:1], "other.yaml"]),
    "a directory as recipe": lambda d: ["run", str(d)],
    "a recipe that is not there": lambda _: ["run", "none.yaml"],
    "an empty recipe": recipe_of(""),
    "a recipe of spaces and comments": recipe_of("# nothing\n\n"),
    "a recipe that is a list": recipe_of("- 1\n- 2\n"),
    "a recipe that is a word": recipe_of("hello\n"),
    "a recipe in UTF-16": recipe_of("name: x\n".encode("utf-16")),
    "a recipe with a zero byte": recipe_of(b"name: a\0b\n"),
    "an anchor that contains itself": recipe_of("name: &a [*a]\n"),
    "3,000 levels of lists": recipe_of("name: " + "[" * 3000 + "]" * 3000 + "\n"),
    "anchors that multiply (nine lists of nine, nine levels deep)": recipe_of(
        "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))
    ),
    "merges that multiply": recipe_of(
        "a0: &a0 {x: 1, y: 2, z: 3}\n"
        + "".join(f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    ),
    "a recipe of 2 MB": recipe_of("name: x\n" + "# " + "y" * (1 << 21) + "\n"),
    "`!!python/object/apply:os.system [ls]`": recipe_of("name: !!python/object/apply:os.system [ls]\n"),
    "`!!timestamp 2001-99-99`": recipe_of("name: !!timestamp 2001-99-99\n"),
    "`!!bool maybe`": recipe_of("name: !!bool maybe\n"),
    "`!!int x`": recipe_of("seed: !!int x\n"),
    '`"\\UFFFFFFFF"`': recipe_of('name: "\\UFFFFFFFF"\n'),
    '`"\\ud800"`': recipe_of('cluster: {account: "\\ud800"}\n'),
    "a number of 5,000 digits": recipe_of("seed: " + "9" * 5000 + "\n"),
    "a key that is a list": recipe_of("? [a, b]\n: 1\n"),
    "a key that is a number": recipe_of("1: 2\n"),
    "a tab in front of a key": recipe_of("nodes:\n\tcount: 1\n"),
    "two documents in one file": recipe_of("name: a\n---\nname: b\n"),
    "a file beside a recipe in a directory whose name is not UTF-8": _lonely_surrogates,
    "a recipe in a closed directory": closed(lambda _: ["run", "closed/other.yaml", "--cluster", "local"]),
    "``50% für 'mich'; $HOME %s 名.yaml`` in a directory of that name": _odd_name,
    # Options
    "`--set nodes.count`": _given("--set", "nodes.count"),
    "`--set =1`": _given("--set", "=1"),
    "`--set seed.x=1`": _given("--set", "seed=1", "--set", "seed.x=1"),
    "`--out` of a directory with content": _occupied,
    "`--out` with a byte that is not UTF-8": _out(os.fsdecode(b"out-\xff")),
    "`--out` with a line break": _out("a\nb"),
    "`--out` below a file": _out("recipe.yaml/x"),
    "`--out /proc/run`": _out("/proc/run"),
    "`--out` in a closed directory": closed(_out("closed/run")),
    "`--cluster mars`": lambda d: [*_emulated(d), "--cluster", "mars"],
    # Tables of `lemix fit`
    "a pipe as table": pipe("points.csv", FIT),
    "`/dev/zero` as table": lambda _: ["fit", "/dev/zero"],
    "a table of 1 GB": gigabyte("points.csv", FIT),
    "a table in binary": file_of("points.csv", b"\xff\x00" * 99, FIT),
    "a table with a quote that never ends": file_of("points.csv", 'batch,length,ms\n"1,2,3\n', FIT),
    "a table with an infinite time": file_of("points.csv", "batch,length,ms\n1,2,inf\n", FIT),
    "a table with a batch of 1e400": file_of("points.csv", "batch,length,ms\n1e400,2,3\n", FIT),
    # Coefficients
    "a pipe as coefficients": pipe("other.yaml", TIMES),
    "`/dev/zero` as coefficients": _given("--set", "engine.coefficients=/dev/zero"),
    "empty coefficients": file_of("other.yaml", "", TIMES),
    "coefficients in binary": file_of("other.yaml", bytes(range(128, 256)), TIMES),
    "coefficients of another schema": file_of("other.yaml", "schema: 7\n", TIMES),
    "coefficients that are all 0": file_of(
        "other.yaml",
        "schema: 1\nform: affine-quadratic\nhardware: h\nmodel: m\ndtype: d\nlayers: 4\nprovenance: {}\n"
        "per_layer: {forward: {a: 0, b: 0, c: 0}}\n",
        TIMES,
    ),
    "coefficients with `.nan`": file_of(
        "other.yaml",
        "schema: 1\nform: affine-quadratic\nhardware: h\nmodel: m\ndtype: d\nlayers: 4\nprovenance: {}\n"
        "per_layer: {forward: {a: .nan, b: 0, c: 0}}\n",
        TIMES,
    ),
    "coefficients in a closed directory": closed(set_to("engine.coefficients", "closed/other.yaml")),
    # Text
    "a pipe as training text": pipe("other.jsonl", TEXT),
    "a pipe as prompts": pipe("other.jsonl", PROMPTS),
    "`/dev/zero` as training text": set_to("training.data", "{path: /dev/zero}", "torch"),
    "`/dev/null` as training text": set_to("training.data", "{path: /dev/null}", "torch"),
    "a directory as training text": set_to("training.data", "{path: .}", "torch"),
    "training text that is not there": TEXT,
    "training text in a closed directory": closed(set_to("training.data", "{path: closed/other.jsonl}", "torch")),
    "a pattern of training text in a closed directory": closed(
        set_to("training.data", "{path: 'closed/*.jsonl'}", "torch")
    ),
    "training text with a name of 300 characters": set_to("training.data", f"{{path: '{'x' * 299}*'}}", "torch"),
    "training text that the user may not read": _closed_text,
    "training text that is empty": file_of("other.jsonl", "", TEXT),
    "training text in binary": file_of("other.jsonl", bytes(range(256)), TEXT),
    "training text that is one JSON list": file_of("other.jsonl", '[{"text": "a"}]\n', TEXT),
    "training text with a line of 65 MB": file_of("other.jsonl", b"x" * (65 << 20), TEXT),
    "training text with a line of 1 GB": gigabyte("other.jsonl", TEXT),
    "training text with a line of 256 MB in a `.gz` of 256 KB": file_of(
        "other.gz", gzip.compress(bytes(1 << 24)) * 16, set_to("training.data", "{path: other.gz}", "torch")
    ),
    "a Parquet file with a cell of 1 GB": parquet({"text": ["x"]}, TABLE, cell=1 << 30),
    "the same as prompts": parquet({"text": ["x"]}, TABLE_OF_PROMPTS, cell=1 << 30),
    "a Parquet file that is none": file_of("table.parquet", b"PAR1" + b"\xff" * 64 + b"PAR1", TABLE),
    "a Parquet file that was cut short": parquet({"text": ["x"]}, TABLE, then=cut("table.parquet")),
    "a Parquet file without a column of text": parquet({"body": ["x"]}, TABLE),
    "a Parquet file whose text are numbers": parquet({"text": [1]}, TABLE),
    "training text nested 100,000 levels deep": file_of("other.jsonl", "[" * 100_000, TEXT),
    "prompts with a number for text": file_of("other.jsonl", '{"text": 1}\n', PROMPTS),
    # Traces
    "a pipe as trace": pipe("trace", trace("azure", "")),
    "a trace in a closed directory": closed(set_to("serving.source", "{kind: azure, path: closed/trace}")),
    "a trace with a line of 1 GB": gigabyte("trace", trace("azure", "")),
    "a batch with a line of 1 GB": gigabyte("other.jsonl", BATCH),
    "an Azure trace across midnight, out of order, with seven digits of a second's fraction": trace(
        "azure",
        AZURE + "2023-11-17 00:00:00.1234567,5,5\n2023-11-16 23:59:59.9999999,5,5\n2023-11-17 01:00:00+01:00,5,5\n",
    ),
    "an Azure trace with a time of day alone": trace("azure", AZURE + "18:15:46.1234567,5,5\n"),
    "an Azure trace with the second 60": trace("azure", AZURE + "2016-12-31 23:59:60,5,5\n"),
    "a trace whose requests have no tokens": trace("azure", AZURE + "2023-11-16 00:00:00,0,0\n"),
    "an Azure trace without a column": trace("azure", "TIMESTAMP,ContextTokens\n2023-11-16,1\n"),
    "a trace with 1e13 tokens": trace("azure", AZURE + "2023-11-16 00:00:00,10000000000000,1\n"),
    "a trace with a token count of 40 digits": trace("burstgpt", BURST + f"0,{'9' * 40},1\n"),
    "a trace with a token count of 5,000 digits": trace("burstgpt", BURST + f"0,{'9' * 5000},1\n"),
    "a trace with -1 tokens": trace("azure", AZURE + "2023-11-16 00:00:00,-1,1\n"),
    "a trace at 1e300 s": trace("burstgpt", BURST + "1e300,5,5\n"),
    "a trace at NaN": trace("burstgpt", BURST + "nan,5,5\n"),
    "a trace on 99 February": trace("azure", AZURE + "2023-02-99 00:00:00,5,5\n"),
    "a trace with a quote that never ends": trace("azure", AZURE + '"2023-11-16 00:00:00,5,5\n'),
    "a trace of failures alone": trace("burstgpt", BURST + "0,5,0\n"),
    "a Mooncake trace with 1e30 tokens": trace(
        "mooncake", '{"timestamp": 0, "input_length": 1e30, "output_length": 1}\n'
    ),
    "a Mooncake trace at 1e400": trace("mooncake", '{"timestamp": 1e400, "input_length": 1, "output_length": 1}\n'),
    "an OpenAI batch with a token that the model has not": file_of(
        "other.jsonl", '{"custom_id": "a", "body": {"prompt": [99999]}}\n', BATCH
    ),
    "an OpenAI batch with an empty prompt": file_of(
        "other.jsonl", '{"custom_id": "a", "body": {"prompt": ""}}\n', BATCH
    ),
    "a window behind the end of the trace": lambda d: [
        *trace("azure", AZURE + "2023-11-16 00:00:00,5,5\n")(d),
        "--set",
        "serving.window.start_s=60",
    ],
    "a window 300 times thinner than its trace (with `--dry-run`, and in the run's log)": lambda d: [
        *trace("burstgpt", BURST + "0,5,5\n500,5,5\n900,5,5\n" + BUSY)(d),
        "--set",
        "serving.window.end_s=1000",
    ],
    # Checkpoints
    "`config.json` that is a list": checkpoint(b"[]"),
    "`config.json` cut short": checkpoint(b'{"model_type": "lla'),
    "`config.json` that is a pipe": checkpoint(then=pipe_for("config.json")),
    "`config.json` nested 100,000 levels deep": checkpoint(b"[" * 100_000),
    "a model directory without `config.json`": checkpoint(then=without("config.json")),
    "a model directory without weights": checkpoint(then=without("model.safetensors")),
    "a weight file that was cut short": checkpoint(then=cut("model.safetensors")),
    "a weight file with other bytes": checkpoint(then=writes("model.safetensors", b"\xff" * 64)),
    "a weight file that is a pipe": checkpoint(then=pipe_for("model.safetensors")),
    "a weight file that the user may not read": checkpoint(then=closed_file("model.safetensors")),
    "a `config.json` that the user may not read": checkpoint(then=closed_file("config.json")),
    "a model directory in a closed directory": closed(set_to("model", "{path: closed/model}", "torch")),
    "a closed directory as model": closed(set_to("model", "{path: closed}", "torch")),
    "`training.resume` of a closed directory": closed(set_to("training.resume", "closed", "torch")),
    "`training.resume` in a closed directory": closed(set_to("training.resume", "closed/run", "torch")),
    "`training.resume` of a manifest that is a pipe": resume(pipe_for("manifest.json")),
    "`training.resume` of a manifest that was cut short": resume(writes("manifest.json", b'{"schema": 1, ')),
    "`training.resume` of a manifest nested 100,000 levels deep": resume(
        writes("manifest.json", b'{"schema": 1, "model": ' + b"[" * 100_000)
    ),
    "`training.resume` of a manifest of 1 GB": resume(sparse("manifest.json")),
    "a missing shard": checkpoint(index=True, then=without("b.safetensors")),
    "a shard that was cut short": checkpoint(index=True, then=cut("b.safetensors")),
    "an index that is a list": checkpoint(index=[]),
    "an index without `weight_map`": checkpoint(index={"metadata": {}}),
    "an index with `weight_map: null`": checkpoint(index={"weight_map": None}),
    "an index with a path out of the directory": checkpoint(index={"weight_map": {"x": "../b.safetensors"}}),
    "an index that names a tensor which its file has not": checkpoint(index={"weight_map": {"y": "b.safetensors"}}),
    "a layer too few": checkpoint({"num_hidden_layers": 3}),
    "an embedding of another size than `vocab_size`": checkpoint({"vocab_size": 300}),
    "a tokenizer one token larger than the embedding": checkpoint(then=with_tokenizer(258)),
    "the same with `--set model.resize=true`": lambda d: [
        *checkpoint(then=with_tokenizer(258))(d),
        "--set",
        "model.resize=true",
        "--set",
        "training.sequence_length=2",  # its words are whole lines
    ],
    "the same where the embedding has another size than `vocab_size`, too": lambda d: [
        *checkpoint({"vocab_size": 300}, then=with_tokenizer(320))(d),
        "--set",
        "model.resize=true",
    ],
    "a damaged tokenizer": checkpoint(then=writes("tokenizer.json", b"{")),
    "a tokenizer that is a pipe": checkpoint(then=pipe_for("tokenizer.json")),
    "a tokenizer of 1 GB": checkpoint(then=sparse("tokenizer.json")),
    "a tokenizer that its library breaks off in": checkpoint(
        then=beside_a_tokenizer(
            "tokenizer.json",
            b'{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "continuing_subword_prefix": "long",'
            b' "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}',
        )
    ),
    "`tokenizer_config.json` that is a list": checkpoint(then=beside_a_tokenizer("tokenizer_config.json", b"[]")),
    "`special_tokens_map.json` nested 100,000 levels deep": checkpoint(
        then=beside_a_tokenizer("special_tokens_map.json", b"[" * 100_000)
    ),
    "a tokenizer with code of its own": checkpoint(
        then=beside_a_tokenizer(
            "tokenizer_config.json", b'{"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", null]}}'
        )
    ),
    "a chat template with loops of 10^10 turns": template(
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    ),
    "a chat template that doubles its work 60 times": template(
        "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n else '' }}{% endmacro %}{{ f(60) }}"
    ),
    "a chat template with a text of 10^11 characters": template("{{ 'x' * 10 ** 11 }}"),
    "a chat template without its end": template("{% for message in messages %}"),
    "a chat template in UTF-16": template("{{ messages }}".encode("utf-16")),
    "a chat template in `tokenizer_config.json` that is a number": checkpoint(
        then=beside_a_tokenizer("tokenizer_config.json", b'{"eos_token": "</s>", "chat_template": 5}')
    ),
    "`generation_config.json` that is a list, for vLLM": generation(b"[]"),
    "`generation_config.json` with a word for a number, for vLLM": generation(b'{"temperature": "hot"}'),
    "a quantised checkpoint": checkpoint({"quantization_config": {"quant_method": "gptq"}}),
    "a mixture of experts": checkpoint({"model_type": "mixtral", "num_local_experts": 8}),
    "a model of another type": checkpoint({"model_type": "bert"}),
    "a checkpoint with GPT-2 for vLLM": checkpoint(
        {"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 2}, kind="vllm"
    ),
}
