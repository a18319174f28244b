from collections.abc import Callable
from pathlib import Path

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.workload.lines import Findings
from lemix_hpc.workload.traces import TraceRow, read_azure, read_burstgpt, read_mooncake


@pytest.fixture
def csv_file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "trace.csv"
        path.write_text(text)
        return path

    return write


def lengths(rows: list[TraceRow]) -> list[tuple[int, int]]:
    return [(row.prompt_tokens, row.output_tokens) for row in rows]


def test_azure_2023_and_2024_timestamps(csv_file: Callable[[str], Path]) -> None:
    path = csv_file(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951690,396,109\n"
        "2023-11-16 18:15:51+00:00,7,8\n"
        "2023-11-16 20:15:52+02:00,9,10\n"
    )
    findings = Findings()
    rows = list(read_azure(path, findings))
    assert lengths(rows) == [(374, 44), (396, 109), (7, 8), (9, 10)]
    assert [row.time - rows[0].time for row in rows] == pytest.approx([0, 4.314579, 4.31941, 5.31941], abs=1e-7)
    assert findings == Findings()


def test_azure_reports_each_bad_line(csv_file: Callable[[str], Path]) -> None:
    path = csv_file(
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
        "2023-11-16 18:15:46,1,2\r\n"
        "yesterday,1,2\r\n"
        "2023-11-16 18:15:47,-1,2\r\n"
        "\r\n"
        "2023-11-16 18:15:48,1\r\n"
        "2023-11-16 18:15:49,1,2.5\r\n"
        "2023-11-16 18:15:50,3,4\r\n"
    )
    findings = Findings()
    assert lengths(list(read_azure(path, findings))) == [(1, 2), (3, 4)]
    assert [message.removeprefix(f"{path}, ").split(":")[0] for message in findings.malformed] == [
        "line 3",
        "line 4",
        "line 6",
        "line 7",
    ]
    assert "'yesterday'" in findings.malformed[0]
    assert "ContextTokens is '-1', expected a whole number" in findings.malformed[1]
    assert "2 fields, where the header has 3" in findings.malformed[2]
    assert "GeneratedTokens is '2.5'" in findings.malformed[3]


def test_wrong_header_says_what_was_expected_and_found(csv_file: Callable[[str], Path]) -> None:
    path = csv_file("Timestamp,Model,Request tokens,Response tokens\n5,ChatGPT,1,2\n")
    with pytest.raises(UserError) as error:
        list(read_azure(path, Findings()))
    message = str(error.value)
    assert str(path) in message
    assert "an Azure LLM trace, CSV with the columns TIMESTAMP, ContextTokens, GeneratedTokens" in message
    assert "'Timestamp,Model,Request tokens,Response tokens'" in message


def test_header_alone_and_no_valid_line(csv_file: Callable[[str], Path]) -> None:
    header = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    with pytest.raises(UserError, match="nothing follows its first line"):
        list(read_azure(csv_file(header), Findings()))
    with pytest.raises(UserError, match="none of its 1 lines is valid"):
        list(read_azure(csv_file(header + "a,b,c\n"), Findings()))


def test_burstgpt_counts_failed_requests_and_leaves_them_out(csv_file: Callable[[str], Path]) -> None:
    path = csv_file(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n"
        "45.5,GPT-4,1087,230,1317,API log\n"
        "50,GPT-4,31,0,31,API log\n"
        "nan,GPT-4,31,1,32,API log\n"
    )
    findings = Findings()
    assert list(read_burstgpt(path, findings)) == [TraceRow(5, 472, 18), TraceRow(45.5, 1087, 230)]
    assert findings.failed == 1
    assert len(findings.malformed) == 1 and "line 5: the timestamp is nan s" in findings.malformed[0]


def test_burstgpt_with_sessions(csv_file: Callable[[str], Path]) -> None:
    path = csv_file(
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        '5,12,0.3,"ChatGPT, old",472,18,490,Conversation log\n'
    )
    assert list(read_burstgpt(path, Findings())) == [TraceRow(5, 472, 18)]


def test_mooncake_times_are_milliseconds(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl(
        {"timestamp": 1500, "input_length": 10, "output_length": 2, "hash_ids": [1]},
        {"timestamp": 1500, "input_length": "10", "output_length": 2},
        {"timestamp": 2000, "output_length": 2},
        "[1]",
        {"timestamp": 3000, "input_length": 12, "output_length": -1},
        {"timestamp": 4000, "input_length": 12, "output_length": 3},
    )
    findings = Findings()
    assert list(read_mooncake(path, findings)) == [TraceRow(1.5, 10, 2), TraceRow(4.0, 12, 3)]
    reasons = [message.split(": ", 1)[1] for message in findings.malformed]
    assert "input_length" in reasons[0] and "input_length" in reasons[1]
    assert "Expected `object`, got `array`" in reasons[2] and "output_length" in reasons[3]


@pytest.mark.trial_data
def test_published_traces(trial_data: Path) -> None:
    findings = Findings()
    conversation = list(read_azure(trial_data / "azure-llm-2023" / "conv.csv", findings))
    code = list(read_azure(trial_data / "azure-llm-2023" / "code.csv", findings))
    mooncake = list(read_mooncake(trial_data / "mooncake" / "conversation_trace.jsonl", findings))
    assert findings == Findings()
    assert (len(conversation), len(code), len(mooncake)) == (9682, 4409, 12031)
    assert lengths(conversation[:2]) == [(374, 44), (396, 109)]
    assert conversation[1].time - conversation[0].time == pytest.approx(4.314579, abs=1e-7)
    assert code[1].time - code[0].time == pytest.approx(0.052, abs=1e-7)
    assert mooncake[10] == TraceRow(3.0, mooncake[10].prompt_tokens, mooncake[10].output_tokens)
