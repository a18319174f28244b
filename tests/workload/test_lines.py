from pathlib import Path

import msgspec
import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.workload.lines import Findings, decode_json, numbered_lines, parsed


def numbers(path: Path, findings: Findings) -> list[tuple[int, int]]:
    lines = numbered_lines(path, "whole numbers")
    return list(parsed(lines, int, path=path, expected="whole numbers", findings=findings))


def test_byte_order_mark_line_ends_and_blank_lines_are_no_content(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_bytes(b"\xef\xbb\xbf1\r\n\r\n2\n   \n3")
    findings = Findings()
    assert numbers(path, findings) == [(1, 1), (3, 2), (5, 3)]
    assert findings.malformed == []


def test_every_bad_line_is_reported_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_bytes(b"1\nx\n\n\xff\n4\n")
    findings = Findings()
    assert numbers(path, findings) == [(1, 1), (5, 4)]
    assert len(findings.malformed) == 2
    assert f"{path}, line 2: " in findings.malformed[0] and "'x'" in findings.malformed[0]
    assert f"{path}, line 4: " in findings.malformed[1] and "utf-8" in findings.malformed[1]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf\n"])
def test_empty_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "numbers"
    path.write_bytes(content)
    with pytest.raises(UserError, match="numbers: expected whole numbers, but the file is empty"):
        numbers(path, Findings())


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected whole numbers, but the file cannot be read: No such file"):
        numbers(tmp_path / "absent", Findings())
    with pytest.raises(UserError, match="is a directory; give a file"):
        numbers(tmp_path, Findings())


def test_no_valid_line_quotes_the_first_problem(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_text("x\ny\n")
    with pytest.raises(UserError, match=r"none of its 2 lines is valid.*line 1: .*'x'"):
        numbers(path, Findings())


def test_json_of_the_wrong_type_says_where() -> None:
    class Point(msgspec.Struct):
        x: int

    assert decode_json('{"x": 1, "more": 2}', Point) == Point(1)
    with pytest.raises(ValueError, match=r"Expected `int`, got `str` - at `\$\.x`"):
        decode_json('{"x": "1"}', Point)
    with pytest.raises(ValueError, match="not valid JSON"):
        decode_json("{", Point)
    with pytest.raises(ValueError, match="not valid JSON"):
        decode_json('{"x": 1, "deep": ' + "[" * 100_000, Point)
