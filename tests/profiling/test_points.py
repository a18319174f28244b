from pathlib import Path

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.policy.latency import Shape
from lemix_hpc.profiling.points import Measured, PointTable, Unfit, read_points


def table(tmp_path: Path, text: str, name: str = "points.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def read(tmp_path: Path, text: str) -> PointTable:
    return read_points([table(tmp_path, text)])


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_times_per_layer(tmp_path: Path) -> None:
    found = read(tmp_path, "batch,length,ms_per_layer\n1,16,0.5\n4,128,2\n")
    assert found == PointTable((Measured(1, 16, 0.0005), Measured(4, 128, 0.002)), (), True, ())
    assert found.points[1].shape == Shape(512, 4 * 128**2, 0, 4)


def test_columns_in_any_order_with_kind_context_and_stage(tmp_path: Path) -> None:
    text = (
        "ms, kind ,stage,context,length,batch\n1,prefill,0,,16,1\n2,decode,1,300,1,2\n3,backward,1,0,16,2\n4,,,,8,1\n"
    )
    found = read(tmp_path, text)
    assert not found.per_layer
    assert found.points == (
        Measured(1, 16, 0.001),
        Measured(2, 1, 0.002, context=300, stage=1),
        Measured(2, 16, 0.003, kind="backward", stage=1),
        Measured(1, 8, 0.004),
    )
    assert found.points[1].shape == Shape(2, 2, 600)


def test_contexts_without_lengths_are_decode_steps(tmp_path: Path) -> None:
    assert read(tmp_path, "batch,context,ms_per_layer\n2,128,0.3\n").points == (Measured(2, 1, 0.0003, context=128),)


def test_what_spreadsheets_add_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_bytes(b"\xef\xbb\xbfbatch,length,ms\r\n1.0,16,5e-1\r\n\r\n , ,\r\n")
    assert read_points([path]).points == (Measured(1, 16, 0.0005),)


def test_what_did_not_fit_in_memory_is_kept_apart(tmp_path: Path) -> None:
    found = read(tmp_path, "batch,length,kind,ms\n1,16,prefill,1\n8,4096,backward,oom\n")
    assert found.points == (Measured(1, 16, 0.001),)
    assert found.unfit == (Unfit(8, 4096, kind="backward"),)


def test_what_a_profile_adds_is_nothing_to_warn_of(tmp_path: Path) -> None:
    text = (
        "stage,kind,batch,length,context,ms,ms_low,ms_high,repeats,peak_bytes,took_s\n0,prefill,1,16,0,1,1,2,9,5,0.1\n"
    )
    assert read(tmp_path, text).warnings == ()


def test_other_columns_are_named_and_play_no_part(tmp_path: Path) -> None:
    found = read(tmp_path, "batch,length,ms,clock,note\n1,16,0.5,0.1,3\n")
    assert found.points == (Measured(1, 16, 0.0005),)
    assert found.warnings == (f"{tmp_path}/points.csv: columns that are not used: clock, note",)


def test_several_tables_are_one(tmp_path: Path) -> None:
    prefill = table(tmp_path, "batch,length,ms\n1,16,1\n", "prefill.csv")
    decode = table(tmp_path, "batch,context,ms\n1,16,2\n", "decode.csv")
    assert [p.length for p in read_points([prefill, decode]).points] == [16, 1]


def test_times_of_layers_and_stages_are_not_mixed(tmp_path: Path) -> None:
    layer = table(tmp_path, "batch,length,ms_per_layer\n1,16,1\n", "layer.csv")
    stage = table(tmp_path, "batch,length,ms\n1,16,1\n", "stage.csv")
    with pytest.raises(UserError, match="some tables give ms_per_layer and others ms"):
        read_points([layer, stage])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "points.csv: the table is empty; its first line names the columns: batch,length,ms_per_layer"),
        ("batch,length,ms\n", "points.csv: the table has no measured times"),
        ("batch,length,ms\n1,16,oom\n", "points.csv: the table has no measured times"),
        ("batch,length,ms,batch\n1,2,3,4\n", "points.csv:1: column given twice: batch; keep one of them"),
        (
            "size,ms_per_token\n1,2\n",
            "points.csv:1: missing columns: batch, length (or context, for decode steps), "
            "ms_per_layer (or ms, for times of a whole stage); found size, ms_per_token",
        ),
        (
            "batch,length,ms,ms_per_layer\n1,2,3,4\n",
            "points.csv:1: both ms_per_layer and ms are given; keep the one to fit",
        ),
        ("batch,length,ms\n1,16\n", "points.csv:2: expected 3 cells as in the first line, found 2"),
        ("batch,length,ms\n1,16,fast\n", "points.csv:2: ms: expected milliseconds, or oom, found 'fast'"),
        ("batch,length,ms\n1,16,\n", "points.csv:2: ms: expected milliseconds, or oom, found ''"),
        (
            "batch,length,ms\n1,16,nan\n",
            "points.csv:2: ms: expected a positive and finite number of milliseconds, found nan",
        ),
        (
            "batch,length,ms\n1,16,-2\n",
            "points.csv:2: ms: expected a positive and finite number of milliseconds, found -2",
        ),
        (
            "batch,length,ms\n1,16,0\n",
            "points.csv:2: ms: expected a positive and finite number of milliseconds, found 0",
        ),
        (
            "batch,length,ms\n1,16,inf\n",
            "points.csv:2: ms: expected a positive and finite number of milliseconds, found inf",
        ),
        ("batch,length,ms\n0,16,1\n", "points.csv:2: batch: expected a whole number of at least 1, found 0"),
        ("batch,length,ms\n1,1.5,1\n", "points.csv:2: length: expected a whole number of at least 1, found 1.5"),
        ("batch,length,ms\n1,nan,1\n", "points.csv:2: length: expected a whole number of at least 1, found nan"),
        ("batch,length,ms\n1,many,1\n", "points.csv:2: length: expected a whole number, found 'many'"),
        (
            "batch,length,kind,ms\n1,16,sideways,1\n",
            "points.csv:2: kind: expected one of forward, prefill, decode, backward, found 'sideways'",
        ),
        (
            "batch,length,kind,ms\n1,16,decode,1\n",
            "points.csv:2: length: a decode step has 1 new token per sequence, found 16; put cached ones in context",
        ),
        ('batch,length,ms\n1,16,"1\n', "points.csv:2: not a line of CSV: unexpected end of data"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, expected: str) -> None:
    assert refusal(tmp_path, text) == expected


def test_every_mistake_is_told_with_its_line_up_to_a_screen(tmp_path: Path) -> None:
    lines = refusal(tmp_path, "batch,length,ms\n" + "1,16,1\n1,16,x\n" * 12).splitlines()
    assert lines[0].startswith("points.csv:3: ms:") and lines[9].startswith("points.csv:21: ms:")
    assert lines[10:] == ["and 2 mistakes more"]


def test_no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"none\.csv: cannot be read \(No such file or directory\); name an existing table"
    ):
        read_points([tmp_path / "none.csv"])
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file in UTF-8"):
        read_points([binary])
