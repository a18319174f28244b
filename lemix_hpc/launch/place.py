"""Where the directory of a new run will be, and whether it can be made there."""

from __future__ import annotations

import errno
import os
import re
import secrets
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from lemix_hpc.config.errors import UserError
from lemix_hpc.records.journal_writer import RESERVE


@dataclass(frozen=True)
class Left:
    """What a file system leaves to this user, in bytes and in files; None where it does not count them."""

    nbytes: int | None
    files: int | None


def runs_root() -> Path:
    """Where runs go by default: ./runs, or the directory that LEMIX_RUNS names."""
    return Path(os.environ.get("LEMIX_RUNS") or "runs").expanduser()


def absolute(path: Path) -> Path:
    """As it was written, links and all, but without `..`: a directory must not have two names."""
    path = path.absolute()
    return Path(os.path.realpath(path)) if ".." in path.parts else path


def new_place(name: str, out: Path | None, *, for_slurm: bool) -> Path:
    """The directory of a new run: `out`, or a new one below `runs_root` that begins with the recipe's name.

    Raises UserError if `out` has content, and for a name that others cannot use.
    """
    path = absolute(runs_root() / _new_id(name) if out is None else out)
    if why := _why_unusable(str(path), for_slurm=for_slurm):
        raise UserError(f"{str(path)!r}: {why}; choose another directory with --out, or LEMIX_RUNS")
    try:
        if out is not None and path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(
                f"--out {out}: is not an empty directory; give a new one, so that no earlier run is overwritten"
            )
    except OSError as error:
        raise UserError(cannot_be_made(path, error)) from error
    return path


def check_place(name: str, out: Path | None, *, for_slurm: bool) -> None:
    """Raises UserError as a start would, from what can be seen without making anything that stays: names, rights, free space,
    and what a quota leaves."""
    path = new_place(name, out, for_slurm=for_slurm)
    try:
        _look(path)
    except OSError as error:
        raise UserError(cannot_be_made(path, error)) from error


def cannot_be_made(path: Path, error: OSError) -> str:
    """Why there cannot be a run in a directory, and the way out."""
    room = "make room, or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{path}: the run directory cannot be made: {error.strerror}; {room}choose another with --out"


def _look(path: Path) -> None:
    """Raises the OSError that making a directory at a path, and files in it, most likely would."""
    above = existing(path)
    if not above.is_dir():
        # A link to nothing is what does not exist.
        raise _os_error(errno.ENOTDIR if above.exists() else errno.EEXIST)
    user = os.geteuid()
    if above == path and user not in (0, above.stat().st_uid):
        raise _os_error(errno.EPERM)
    disk = os.statvfs(above)
    if disk.f_flag & os.ST_RDONLY:
        raise _os_error(errno.EROFS)
    if not os.access(above, os.W_OK | os.X_OK, effective_ids=True):
        raise _os_error(errno.EACCES)
    left = left_to_user(above)
    if left.nbytes == 0 or left.files == 0:
        raise _os_error(errno.ENOSPC)
    _write(above)


def existing(path: Path) -> Path:
    """The path, or the nearest directory above it that is there."""
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def left_to_user(directory: Path) -> Left:
    """Raises OSError."""
    disk = os.statvfs(directory)
    blocks, files = (disk.f_bfree, disk.f_ffree) if os.geteuid() == 0 else (disk.f_bavail, disk.f_favail)
    return Left(blocks * disk.f_frsize if disk.f_blocks else None, files if disk.f_files else None)


def _write(directory: Path) -> None:
    """As much as a run's journal reserves, in a file without a name: most quotas show in nothing else."""
    with tempfile.TemporaryFile(dir=directory) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, RESERVE)
            os.fsync(file.fileno())
        except OSError as error:
            # Not every file system can do that; and with less room than for all of it a run would begin.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSPC):
                raise


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _why_unusable(path: str, *, for_slurm: bool) -> str | None:
    """Why a run cannot be in a directory of this name: it stands in text files, of ours and of Slurm's."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "has bytes that are no UTF-8"
    if any(ord(char) < ord(" ") for char in path):
        return "has a line break or another control character"
    if for_slurm and "%" in path:
        return "has a %, behind which Slurm puts in something else"
    return None


def _new_id(name: str) -> str:
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def recipe_name(run_id: str) -> str | None:
    """The name of the recipe in an id that was made for a run; None for any other."""
    made = re.fullmatch(r"(.+)-\d{8}-\d{6}-[0-9a-f]{4}", run_id)
    return made[1] if made else None
