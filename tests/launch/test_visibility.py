"""What compute hosts may not see is told before a job is submitted."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from lemix_hpc.config.recipe import Engine, Model, Recipe
from lemix_hpc.launch import visibility
from lemix_hpc.launch.visibility import Mount, mount_of, mounted, prove, unseen

TABLE = r"""22 27 0:21 / / rw,relatime - ext4 /dev/vda rw
25 24 0:23 / /tmp rw shared:3 - tmpfs tmpfs rw,size=24684092k
26 22 0:24 / /home rw,relatime master:1 - nfs4 server:/home rw
27 26 0:25 / /home/a\040b rw - lustre x@tcp:/b rw
28 22 0:26 / /home/b rw - xfs /dev/sdb rw
29 22 0:27 / /home/b rw - nfs server:/b rw
"""


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Mount]:
    """Those of a login node; Python is on a shared one."""
    table = tmp_path / "mountinfo"
    table.write_text(TABLE)
    found = mounted(table)
    monkeypatch.setattr(visibility, "mounted", lambda: found)
    monkeypatch.setattr(sys, "prefix", "/home/me/venv")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    hosts(monkeypatch, "login cpu1 cpu2")
    return found


def hosts(monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    monkeypatch.setattr(visibility, "ask", lambda *_: names)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/root/runs", "ext4"),
        ("/tmp/x/y", "tmpfs"),
        ("/tmpx", "ext4"),
        ("/home/me", "nfs4"),
        ("/home/a b/c", "lustre"),
        ("/home/b/c", "nfs"),
    ],
)
def test_the_file_system_of_a_path(mounts: list[Mount], path: str, kind: str) -> None:
    found = mount_of(Path(path), mounts)
    assert found is not None and found.kind == kind


def test_what_only_this_host_has_is_warned_of(mounts: list[Mount]) -> None:  # noqa: ARG001
    recipe = Recipe(model=Model(path=Path("/home/models/x")))
    assert unseen(recipe, Path("/home/me/runs")) is None
    warning = unseen(recipe, Path("/tmp/runs"))
    assert warning is not None
    assert warning.startswith(
        "warning: the run directory, /tmp/runs, is on tmpfs at /tmp, which by its type only this host"
    )
    assert "set LEMIX_RUNS, or give --out, to a directory that all hosts share" in warning
    more = unseen(Recipe(engine=Engine(coefficients=Path("/opt/c.yaml"))), Path("/tmp/runs"))
    assert more is not None and "and 1 more of the run's files" in more
    file = unseen(Recipe(model=Model(path=Path("/opt/m"))), Path("/home/me/runs"))
    assert file is not None and file.startswith("warning: model.path, /opt/m, is on ext4 at /,")


def test_no_warning_where_a_job_has_seen_it_or_there_is_no_other_host(
    mounts: list[Mount],  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = Path("/tmp/runs")
    hosts(monkeypatch, socket.gethostname())
    assert unseen(Recipe(), here) is None
    hosts(monkeypatch, "")
    assert unseen(Recipe(), here) is not None, "Slurm does not say"
    prove(here)
    prove(here)
    assert unseen(Recipe(), Path("/tmp/others")) is None
    assert visibility.proven() == {Path("/tmp")}


def test_without_a_table_of_mounts_nothing_is_told(tmp_path: Path) -> None:
    assert mounted(tmp_path / "none") == []
    assert mount_of(tmp_path, []) is None
