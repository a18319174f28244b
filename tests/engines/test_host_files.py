"""What ranks keep on their host goes with them, or with the next run there."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.engines import host_files
from lemix_hpc.engines.host_files import forget_sockets, own_directory, place_for_sockets, remove_abandoned

OWNER = """
from lemix_hpc.engines.host_files import own_directory
with own_directory() as directory:
    print(directory, flush=True)
    input()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_directory_stays_while_its_owner_lives_and_goes_when_that_was_killed(temporary: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        env=os.environ | {"TMPDIR": str(temporary)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with owner:
        directory = Path(owner.stdout.readline().strip())
        shared = Path("/dev/shm") / f"torch-{directory.name}-[0-1]-cpushm"
        shared.touch()
        remove_abandoned()
        assert directory.is_dir() and shared.exists()
        owner.send_signal(signal.SIGKILL)
    remove_abandoned()
    assert not directory.exists() and not shared.exists()


@pytest.mark.usefixtures("temporary")
def test_a_connection_outlives_the_name_of_its_socket() -> None:
    with (
        own_directory() as directory,
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as client,
    ):
        (directory / "config.json").touch()
        listener.bind(str(directory / secrets.token_hex(4)))
        listener.listen()
        client.connect(listener.getsockname())
        forget_sockets(directory)
        assert [path.name for path in directory.iterdir()] == ["config.json"]
        server, _ = listener.accept()
        with server:
            client.send(b"x")
            assert server.recv(1) == b"x"
    assert not directory.exists()


def test_a_directory_with_a_long_name_has_no_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    short = tempfile.mkdtemp(dir="/tmp", prefix="s")
    monkeypatch.setattr(host_files, "USUAL_PLACE", Path(short))
    with own_directory() as attempt, own_directory(attempt) as node:
        assert node.is_relative_to(short)
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(node / str(uuid.uuid4())))
    monkeypatch.setattr(host_files, "USUAL_PLACE", Path(short) / "none")
    with pytest.raises(
        UserError, match=r"TMPDIR: .* has more than the 50 characters .* set TMPDIR to a directory with a"
    ):
        place_for_sockets()
    Path(short).rmdir()
