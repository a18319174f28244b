"""Files of every kind, block by block, and the order of their documents."""

import gzip
import itertools
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.training_section import Training
from lemix_hpc.config.workload_section import TextData
from lemix_hpc.workload import compressed_files, data_files, parquet_files
from lemix_hpc.workload.data_set import DataSet, open_files, read_all
from lemix_hpc.workload.texts import Document
from lemix_hpc.workload.tokenizer import ByteTokenizer
from lemix_hpc.workload.training import MicroBatchStream

Kind = Literal["jsonl", "gz", "zst", "parquet"]
KINDS: tuple[Kind, ...] = ("jsonl", "gz", "zst", "parquet")
TEXTS = st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=60), min_size=1)


def write(path: Path, texts: list[str], kind: Kind = "jsonl", rows: int = 3) -> Path:
    """One document for each text. Compressed files have two members, tables row groups of so many rows."""
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts]
    half = len(lines) // 2
    members = [b"".join(lines[:half]), b"".join(lines[half:])[:-1]]
    file = path.with_suffix(".jsonl" if kind == "jsonl" else f".{kind}")
    if kind == "gz":
        file.write_bytes(b"".join(map(gzip.compress, members)) + b"\0\0")
    elif kind == "zst":
        zstandard = pytest.importorskip("zstandard")
        file.write_bytes(b"".join(map(zstandard.ZstdCompressor().compress, members)))
    elif kind == "parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        table = pyarrow.table({"text": texts, "other": list(range(len(texts)))})
        parquet.write_table(table, file, row_group_size=rows)
    else:
        file.write_bytes(b"".join(members))
    return file


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(texts=TEXTS, block=st.integers(1, 700))
def test_blocks_have_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, kind: Kind, texts: list[str], block: int
) -> None:
    path = write(tmp_path_factory.mktemp("data") / "texts", texts, kind)
    [file] = open_files(TextData(path=path), block=block)
    parts = [file.read(block) for block in file.blocks]
    lines = [json.loads(line)["text"] for part in parts for line in part.lines]
    assert lines == texts
    backwards = [file.read(block).lines for block in reversed(file.blocks)]
    assert backwards[::-1] == [part.lines for part in parts]
    assert file.blocks[0].start == 0 and all(a.end == b.start for a, b in itertools.pairwise(file.blocks))


def numbered(count: int) -> list[str]:
    return [f"{number:04} {'x' * (number % 37)}" for number in range(count)]


def epoch(data: DataSet, number: int) -> list[list[str]]:
    windows = range(number * data.windows, (number + 1) * data.windows)
    return [[text(window.document(index)) for index in range(len(window))] for window in map(data.window, windows)]


def text(document: Any) -> str:
    assert isinstance(document, Document)
    return document.text


@pytest.mark.parametrize("kinds", [("jsonl",), ("gz",), ("jsonl", "gz", "jsonl"), ("zst", "parquet", "jsonl")])
def test_windows_deal_out_every_document_once_an_epoch(tmp_path: Path, kinds: tuple[Kind, ...]) -> None:
    everything = numbered(1200)
    share = len(everything) // len(kinds)
    parts = [everything[at * share : (at + 1) * share] for at in range(len(kinds))]
    paths = [
        write(tmp_path / f"part-{at}", part, kind) for at, (part, kind) in enumerate(zip(parts, kinds, strict=True))
    ]
    data = DataSet(TextData(path=paths), 3, block=400)
    assert data.windows > 4
    epochs = [epoch(data, number) for number in range(2)]
    for one in epochs:
        assert sorted(itertools.chain(*one)) == everything
        sizes = [sum(map(len, window)) for window in one]
        assert max(sizes) < 6 * sum(sizes) / len(sizes)
    assert epochs[0] != epochs[1] or kinds == ("gz",), "one file that is compressed is read from front to back"
    again = DataSet(TextData(path=paths), 3, block=400)
    assert [epoch(again, number) for number in (1, 0)] == epochs[::-1], "by the seed alone, from any place on"
    other = DataSet(TextData(path=paths), 4, block=400)
    assert epoch(other, 0) != epochs[0] or kinds == ("gz",)


def test_what_fits_is_one_window_in_the_order_of_the_files(tmp_path: Path) -> None:
    for name, texts in (("b", ["3", "4"]), ("a", ["1", "2"])):
        write(tmp_path / name, texts, "gz" if name == "a" else "jsonl")
    data = DataSet(TextData(path=tmp_path / "*"), 0)
    assert (data.windows, epoch(data, 0), epoch(data, 5)) == (1, [["1", "2", "3", "4"]], [["1", "2", "3", "4"]])
    listed = DataSet(TextData(path=[tmp_path / "b.jsonl", tmp_path / "*.gz", tmp_path / "b.*"]), 0)
    assert epoch(listed, 0) == [["3", "4", "1", "2"]]
    (tmp_path / "deep" / "er").mkdir(parents=True)
    write(tmp_path / "deep" / "er" / "c", ["5"])
    assert epoch(DataSet(TextData(path=tmp_path / "**" / "*.jsonl"), 0), 0) == [["3", "4", "5"]]
    odd = write(tmp_path / "odd [1]*", ["6"])
    assert epoch(DataSet(TextData(path=odd), 0), 0) == [["6"]], "a file that is there is no pattern"


def stream(path: Path, **training: Any) -> MicroBatchStream:
    return MicroBatchStream(
        Training(data=TextData(path=path), sequence_length=16, **training), ByteTokenizer(), 7, block=300
    )


@pytest.mark.parametrize("kind", ["jsonl", "gz"])
@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_training_goes_on_in_any_window_of_large_data(tmp_path: Path, kind: Kind, packing: str) -> None:
    path = write(tmp_path / "texts", numbered(900), kind)
    whole = list(itertools.islice(stream(path, packing=packing, micro_batch_size=2), 3000))
    assert len({batch.window for batch in whole}) > 10
    for index in (1, 700, 1700, 2990):
        resumed = stream(path, packing=packing, micro_batch_size=2)
        resumed.go_to(index, whole[index].window)
        assert list(itertools.islice(resumed, 9)) == whole[index : index + 9]


def test_only_what_is_needed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "texts", numbered(3000))
    read: list[int] = []
    of_file = data_files.PlainFile.read

    def counted(self: data_files.PlainFile, block: data_files.Block) -> data_files.Part:
        read.append(block.start)
        return of_file(self, block)

    monkeypatch.setattr(data_files.PlainFile, "read", counted)
    data = DataSet(TextData(path=path), 0, block=500)
    assert data.windows > 20 and len(read) <= 9
    resumed = DataSet(TextData(path=path), 0, block=500)
    del read[:]
    resumed.window(5 * resumed.windows + 11)
    resumed._reader.shutdown()
    assert len(read) <= 18, "the window, and the one behind it"


def test_lines_that_are_left_out_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps({"text": text}) for text in numbered(600)]
    for number in (99, 399, 598):
        lines[number] = '{"txt": 1}'
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    batches = stream(tmp_path / "texts.jsonl")
    for _ in itertools.takewhile(lambda batch: batch.window[0] < 2 * batches._data.windows, batches):
        pass
    told = [*batches.malformed, *(line.removeprefix("left out: ") for line in capsys.readouterr().out.splitlines())]
    starts = [sum(len(line) + 1 for line in lines[:number]) for number in (99, 399, 598)]
    assert batches.left_out == len(told) == 3, "once, in the first epoch"
    assert {message.split(":")[0] for message in told} == {
        f"{tmp_path}/texts.jsonl, line at byte {start}" for start in starts
    }
    small = read_all(TextData(path=tmp_path / "texts.jsonl")).malformed
    assert [message.split(": ")[0].rsplit(", ")[1] for message in small] == ["line 100", "line 400", "line 599"]


def test_a_line_without_end_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (data_files, compressed_files):
        monkeypatch.setattr(module, "LONGEST", 1000)
    monkeypatch.setattr("lemix_hpc.workload.data_set.LONGEST", 1000)
    good = b'{"text": "a"}\n'
    content = good + b'{"text": "' + b"x" * 50_000 + b'"}\n' + good
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.gz"
    plain.write_bytes(content)
    packed.write_bytes(gzip.compress(content))
    [file] = open_files(TextData(path=plain), block=400)
    lines = [line for block in file.blocks for line in file.read(block).lines]
    assert lines[0] == lines[-1] == good.strip() and all(len(line) <= 400 + 1001 for line in lines)
    for path in (plain, packed):
        window = DataSet(TextData(path=path), 0, block=10_000).first
        assert len(window) == 2 and "longer than 0 MiB" in window.malformed[0]


@pytest.mark.parametrize("kind", ["jsonl", "gz", "zst"])
def test_a_line_of_a_gigabyte_takes_little_memory(tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"long.{kind}"
    nothing = bytes(1 << 24)
    if kind == "jsonl":
        with path.open("wb") as file:
            file.truncate(1 << 30)
    else:
        pack = gzip.compress if kind == "gz" else pytest.importorskip("zstandard").ZstdCompressor().compress
        path.write_bytes(pack(nothing) * 16)
        for module in (data_files, compressed_files):
            monkeypatch.setattr(module, "LONGEST", 1 << 20)
        monkeypatch.setattr("lemix_hpc.workload.data_set.LONGEST", 1 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"none of .*lines .*is valid.* line 1: longer than (64|1) MiB"):
            DataSet(TextData(path=path), 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (300 << 20 if kind == "jsonl" else 130 << 20)


def damaged(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


PACKED = gzip.compress(b'{"text": "a"}\n' * 100)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda d: d, "is a directory"),
        (lambda d: d / "none.jsonl", "the file cannot be read: No such file"),
        (lambda d: d / "none-*.jsonl", "no file matches"),
        (lambda d: damaged(d / "a.jsonl", b""), "the file is empty"),
        (lambda d: damaged(d / "a.jsonl", b"\n \n"), "the file is empty"),
        (lambda d: damaged(d / "a.gz", b'{"text": "a"}\n'), "not what its ending says, or damaged"),
        (lambda d: damaged(d / "a.gz", PACKED[:-20]), "it ends in the middle of its data"),
        (lambda d: damaged(d / "a.gz", PACKED[:-4] + b"abcd"), "damaged: .*incorrect length check"),
        (lambda d: damaged(d / "a.gz", PACKED + b"rubbish"), "damaged: .*incorrect header check"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, make: Callable[[Path], Path], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as refused:
        DataSet(TextData(path=make(tmp_path)), 0)
    assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize(("kind", "package"), [("zst", "zstandard"), ("parquet", "pyarrow")])
def test_a_package_that_is_missing_is_named(
    tmp_path: Path, kind: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=rf"need the package {package}; `pip install lemix-hpc\[data\]`"):
        DataSet(TextData(path=damaged(tmp_path / f"a.{kind}", b"x")), 0)


def test_damaged_files_of_other_kinds(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    pytest.importorskip("pyarrow")
    for kind in ("zst", "parquet"):
        with pytest.raises(UserError, match="damaged"):
            DataSet(TextData(path=damaged(tmp_path / f"a.{kind}", b"PAR1 and no more, or so it seems to us")), 0)


def test_conversations_in_a_table(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    messages = [[{"role": "user", "content": "a", "name": "x"}, {"role": "assistant", "content": "b"}]]
    parquet.write_table(pyarrow.table({"messages": messages, "tools": ['[{"name": "f"}]']}), tmp_path / "a.parquet")
    [document] = [window.document(0) for window in [read_all(TextData(path=tmp_path / "a.parquet"))]]
    assert document.messages == ({"role": "user", "content": "a", "name": "x"}, {"role": "assistant", "content": "b"})
    assert document.tools == ({"name": "f"},)
    parquet.write_table(pyarrow.table({"body": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(
        UserError, match="expected some of the columns completion, messages, prompt, text, tools, found body"
    ):
        read_all(TextData(path=tmp_path / "b.parquet"))


def test_row_groups_that_do_not_fit_are_told_with_their_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(parquet_files, "LARGEST_GROUP", 1 << 20)
    path = tmp_path / "a.parquet"
    messages = [[{"role": "assistant", "content": "x"}], [{"role": "assistant", "content": "y" * (2 << 20)}]]
    table = pyarrow.table({"messages": messages, "text": [None, "short"], "image": ["z" * (3 << 20), ""]})
    parquet.write_table(table, path, row_group_size=1, compression="zstd", use_dictionary=False)
    with pytest.raises(UserError, match=r"row group 1 has 2 MiB, most of them in the column messages, and at most 1 "):
        DataSet(TextData(path=path), seed=0)
    # Columns that are not read do not count.
    only_text = TextData.model_validate({"path": path, "fields": {"text": "text"}})
    assert [document_text(only_text)] == ["short"]


def document_text(data: TextData) -> str:
    return text(read_all(data).document(0))


def test_row_groups_that_become_large_in_memory_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(parquet_files, "LARGEST_GROUP", 1 << 20)
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["x" * 10_000] * 1000}), path)
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match=r"row group 0 has 1 MiB or more as text, and at most 1 are read at once"):
        read_all(TextData(path=path))


def test_a_row_that_is_too_long_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_files, "LONGEST", 1 << 10)
    monkeypatch.setattr("lemix_hpc.workload.data_set.LONGEST", 1 << 10)
    window = read_all(TextData(path=write(tmp_path / "a", ["short", "x" * 5000, "last"], "parquet")))
    assert [text(window.document(index)) for index in range(len(window))] == ["short", "last"]
    [message] = window.malformed
    assert message == f"{tmp_path / 'a.parquet'}, row 2: longer than 0 MiB"
    assert max(len(line) for part in window.parts for line in part.lines) == (1 << 10) + 1
