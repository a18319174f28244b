"""What vLLM's parser says of `engine.vllm.args` before a run starts."""

from __future__ import annotations

import shlex

import pytest

from lemix_hpc.config import vllm_args
from lemix_hpc.config.document import parse_document
from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Engine, Recipe, Vllm
from lemix_hpc.engines.vllm.args import given_args
from lemix_hpc.engines.vllm.check import refusal
from tests.inputs.table import Row, rows

ROWS = [row for row in rows() if row.section == "vLLM's own arguments"]


def engine_of(row: Row) -> Engine:
    given = parse_document(shlex.split(row.name)[1].partition("=")[2], "args").data
    return Engine(kind="vllm", vllm=Vllm(args=given))


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_arguments_are_refused_as_the_table_says(row: Row) -> None:
    with pytest.raises(UserError) as error:
        given_args(engine_of(row), "model")
    assert row.is_in(str(error.value))


def test_arguments_are_read_as_on_the_command_line() -> None:
    given = {"max_model_len": 64, "enable_prefix_caching": False, "disable_log_stats": True, "hf_overrides": {"a": 1}}
    args = given_args(Engine(kind="vllm", vllm=Vllm(args=given)), "model")
    assert (args.max_model_len, args.enable_prefix_caching, args.disable_log_stats) == (64, False, True)
    assert args.hf_overrides == {"a": 1}


def test_vllm_is_asked_in_a_process_of_its_own() -> None:
    refused = refusal(Recipe(engine=engine_of(ROWS[0])))
    assert refused is not None and ROWS[0].is_in(refused)
    assert refusal(Recipe(engine=Engine(kind="vllm"))) is None, "nothing to ask"


def test_what_is_refused_by_name_are_arguments_of_vllm() -> None:
    known = vars(given_args(Engine(kind="vllm"), "model"))
    beginnings = [beginning for names, _ in vllm_args.NOT_BUILT for beginning in names]
    assert [beginning for beginning in beginnings if not any(name.startswith(beginning) for name in known)] == []
