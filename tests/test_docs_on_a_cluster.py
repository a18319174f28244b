"""The commands of the documentation that need a cluster, or do something else where there is one."""

import os

import pytest

from tests.conftest import SlurmCluster
from tests.test_docs import ANYWHERE, Reader, commands, type_in_full

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def reader(slurm_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    home = slurm_cluster.scratch / f"reader-{tmp_path_factory.getbasetemp().name}-{os.getpid()}"
    home.mkdir()
    return Reader(home, slurm_cluster.env)


@pytest.mark.parametrize("command", [command for command in commands() if not ANYWHERE.match(command)])
def test_commands_run(reader: Reader, command: str) -> None:
    type_in_full(reader, command)
