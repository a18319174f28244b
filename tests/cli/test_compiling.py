"""What users see while the policy is compiled."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from lemix_hpc.cli.compiling import NOTE, tell_of_compiling


@pytest.fixture
def policy_log() -> Iterator[logging.Logger]:
    logger = logging.getLogger("lemix_hpc.policy")
    before = logger.level, logger.handlers[:], logger.propagate
    logger.handlers = []  # of commands that tests have called in this process
    yield logger
    logger.level, logger.handlers[:], logger.propagate = before


def test_many_functions_are_one_note(policy_log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        tell_of_compiling()
    for name in ("advance", "full"):
        policy_log.getChild("linking").info("compiling %s", name)
    for _ in range(2):
        policy_log.getChild("code_cache").warning("it cannot be kept")
    assert capsys.readouterr().err.splitlines() == [NOTE, "warning: it cannot be kept"]
