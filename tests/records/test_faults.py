import pytest

from lemix_hpc.records.faults import Faults


def raised(divisor: object) -> Exception:
    try:
        divisor.get  # type: ignore[attr-defined]  # noqa: B018
    except AttributeError as error:
        return error
    raise AssertionError


def test_a_fault_is_told_at_length_once(capsys: pytest.CaptureFixture[str]) -> None:
    faults = Faults()
    for number, wrong in enumerate(("x" * 500, 1, 2.0)):
        faults.tell(f"vLLM failed in task {number}", raised(wrong))
    told = capsys.readouterr().out
    assert told.count("Traceback") == 1
    assert [line.split(":")[0] for line in told.splitlines() if line.startswith("vLLM")] == [
        f"vLLM failed in task {number}" for number in range(3)
    ]
    faults.tell("another", ValueError("y" * 10_000))
    assert len(capsys.readouterr().out) < 11_000
