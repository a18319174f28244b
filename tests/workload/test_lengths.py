from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from lemix_hpc.config.workload_section import LengthTable
from lemix_hpc.workload.length_tables import TABLES
from lemix_hpc.workload.lengths import sample_lengths
from lemix_hpc.workload.lines import Findings
from lemix_hpc.workload.traces import TraceRow, read_azure, read_mooncake

LEVELS = np.linspace(0, 100, 21)


def test_tables_are_quantiles() -> None:
    assert set(TABLES) == {"azure-conv", "azure-code", "mooncake-conversation", "lmsys-chat"}
    for table in TABLES.values():
        for quantiles in table:
            assert len(quantiles) == 21
            assert list(quantiles) == sorted(quantiles) and quantiles[0] >= 1


@pytest.mark.parametrize("name", sorted(TABLES))
def test_samples_have_the_quantiles_of_their_table(name: LengthTable) -> None:
    lengths = sample_lengths(name, 20_000, np.random.default_rng(0))
    assert lengths.shape == (20_000, 2)
    for column, quantiles in zip(lengths.T, TABLES[name], strict=True):
        assert quantiles[0] - 0.5 <= column.min() and column.max() <= quantiles[-1] + 0.5
        # In level, not in length: of the tokens at 25, 50 and 75 % that share must lie below or at.
        for level in (5, 10, 15):
            below, upto = (column < quantiles[level] - 1).mean(), (column <= quantiles[level] + 1).mean()
            assert below - 0.02 <= level / 20 <= upto + 0.02


def test_fewer_samples_are_the_first_of_more() -> None:
    few = sample_lengths("azure-conv", 10, np.random.default_rng(3))
    many = sample_lengths("azure-conv", 100, np.random.default_rng(3))
    assert np.array_equal(few, many[:10])


def assert_quantiles(name: str, rows: Iterable[TraceRow]) -> None:
    lengths = np.array([(row.prompt_tokens, row.output_tokens) for row in rows])
    for column, quantiles in zip(lengths.T, TABLES[name], strict=True):
        assert np.percentile(column, LEVELS) == pytest.approx(quantiles, abs=0.01)


@pytest.mark.trial_data
def test_tables_match_the_published_traces(trial_data: Path) -> None:
    azure = trial_data / "azure-llm-2023"
    assert_quantiles("azure-conv", read_azure(azure / "conv.csv", Findings()))
    assert_quantiles("azure-code", read_azure(azure / "code.csv", Findings()))
    mooncake = read_mooncake(trial_data / "mooncake" / "conversation_trace.jsonl", Findings())
    assert_quantiles("mooncake-conversation", mooncake)
