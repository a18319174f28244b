"""MUNGE credentials as keys, with a munged of the test's own."""

import getpass
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lemix_hpc.config.serving_section import Munge
from lemix_hpc.runtime.http.munge import MungeUsers
from lemix_hpc.runtime.http.request_guard import Guard
from tests.runtime.http.in_process import key_file, post, running


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of a munged that runs meanwhile."""
    munged = shutil.which("munged") or shutil.which("/usr/sbin/munged")
    if munged is None:
        pytest.skip("there is no munged")
    directory = tmp_path_factory.mktemp("munge")
    key = directory / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    path = directory / "socket"
    files = [f"--{name}-file={directory / name}" for name in ("pid", "seed", "log")]
    command = [munged, "--foreground", "--force", "--origin=127.0.0.1", f"--socket={path}", f"--key-file={key}", *files]
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        end = time.monotonic() + 30
        while (
            not path.exists()
            or subprocess.run(["munge", "-n", "-S", path], capture_output=True, check=False).returncode
        ):
            assert time.monotonic() < end and process.poll() is None, (directory / "output").read_text()
            time.sleep(0.05)
        yield path
    finally:
        process.terminate()
        process.wait(30)


def credential(socket: Path) -> bytes:
    return subprocess.run(["munge", "-n", "-S", socket], capture_output=True, check=True).stdout.strip()


def users(socket: Path, owner: int, **settings: Any) -> MungeUsers:
    return MungeUsers(Munge(socket=socket, **settings), owner)


def test_the_runs_own_user_may_do_everything(socket: Path) -> None:
    known, made = users(socket, os.getuid()), credential(socket)
    key = known.find(made)
    assert key is not None and key.name == f"munge:{getpass.getuser()}"
    assert key.rights == {"serve", "train", "metrics"}
    assert known.find(made) is key, "also when it comes again"
    assert known.find(credential(socket)) is key, "and with another credential"
    known.now = lambda: time.time() + 3600
    assert known.find(made) is None, "not when it has expired"


def test_others_come_in_by_name_or_group_with_the_rights_that_they_were_given(socket: Path) -> None:
    other = os.getuid() + 1
    assert users(socket, other).find(credential(socket)) is None
    named = users(socket, other, users=[getpass.getuser()], tokens_per_min=60).find(credential(socket))
    assert named is not None and named.rights == {"serve"} and named.tokens is not None
    import grp

    group = grp.getgrgid(os.getgid()).gr_name
    for groups, may in (([group], True), (["no-such-group"], False)):
        assert (users(socket, other, groups=groups).find(credential(socket)) is not None) == may


def test_what_is_no_credential_lets_nobody_in(socket: Path, tmp_path: Path) -> None:
    known = users(socket, os.getuid())
    made = credential(socket)
    for wrong in (b"MUNGE:", b"MUNGE:AwQFAAA=:", made[:-9] + b"AAAAAAAA:", made.replace(b"MUNGE", b"munge")):
        assert known.find(wrong) is None
    assert users(tmp_path / "nothing", os.getuid()).find(made) is None, "munged does not answer"


def test_a_credential_is_a_bearer_token(socket: Path, tmp_path: Path) -> None:
    from lemix_hpc.runtime.http.keys import KeyRing

    guard = Guard(KeyRing(key_file(tmp_path, "a-key")), 1.0, munge=users(socket, os.getuid()))
    with running(guard=guard) as run:
        for key, status in ((credential(socket).decode(), 200), ("a-key", 200), ("MUNGE:x:", 401), ("b-key", 401)):
            with run.client(key) as client:
                assert [post(client).status_code for _ in range(2)] == [status, status]
    assert {call.api.key for call in run.calls} == {f"munge:{getpass.getuser()}", "default"}
