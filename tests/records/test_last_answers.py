import pytest

from lemix_hpc.records import last_answers as module
from lemix_hpc.records.journal import Answered
from lemix_hpc.records.last_answers import LastAnswers


def answer(id: str, body: bytes = b"x") -> Answered:
    return Answered(0, id, "d", 0.0, 200, (), body)


def test_the_newest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    monkeypatch.setattr(module, "MOST_BYTES", 10)
    last = LastAnswers()
    for id in "abcd":
        last.add(answer(id))
    assert [each.id for each in last] == ["b", "c", "d"]
    last.add(answer("b", b"four"))
    assert [each.id for each in last] == ["c", "d", "b"] and last.get("b") == answer("b", b"four")
    last.add(answer("e", b"x" * 8))
    assert [each.id for each in last] == ["e"], "of so many bytes in all"
    assert last.get("b") is None
