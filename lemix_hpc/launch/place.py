"""Where the directory of a new run will be, and whether it can be made there."""

from __future__ import annotations

import errno
import os
import secrets
import time
from pathlib import Path

from lemix_hpc.config.errors import UserError


def runs_root() -> Path:
    """Where runs go by default: ./runs, or the directory that LEMIX_RUNS names."""
    return Path(os.environ.get("LEMIX_RUNS") or "runs").expanduser()


def new_place(name: str, out: Path | None, *, for_slurm: bool) -> Path:
    """The directory of a new run: `out`, or a new one below `runs_root` that begins with the recipe's name.

    Raises UserError if `out` has content, and for a name that others cannot use.
    """
    path = (runs_root() / _new_id(name) if out is None else out).absolute()
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
    """Raises UserError as a start would, from what can be seen without making anything: names, rights and free space. What
    quotas leave is not among it."""
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
    above = next(place for place in (path, *path.parents) if os.path.lexists(place))
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
    blocks, files = (disk.f_bfree, disk.f_ffree) if user == 0 else (disk.f_bavail, disk.f_favail)
    # File systems that do not count either say that they have none in all.
    if (disk.f_blocks and not blocks) or (disk.f_files and not files):
        raise _os_error(errno.ENOSPC)


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
