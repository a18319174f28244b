"""PID 1 of a virtual node: private hostname, hosts table, /tmp and /dev/shm, then slurmd, then reap for ever.

Run as ``python node_init.py NODE HOSTS STAGING SPOOL SPOOL_TARGET PRIVATE... -- SHARED...`` inside new uts, mount, ipc
and pid namespaces. A node ends when its ``unshare`` is killed, as a machine does when its power goes.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def bind(source: Path, target: Path) -> None:
    mount("--bind", source, target)


def make_private(private: Path, shared: list[Path], staging: Path) -> None:
    """Cover ``private`` with an empty tmpfs, in which the shared directories below it stay visible.

    It is built aside and then moved into place, since covering ``private`` hides what is to be bound.
    """
    mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", staging)
    for directory in shared:
        if directory.is_relative_to(private):
            target = staging / directory.relative_to(private)
            target.mkdir(parents=True)
            bind(directory, target)
    mount("--move", staging, private)


def reap_for_ever(node: str) -> int:
    """Run slurmd, and reap orphans: to Slurm a zombie is a task that cannot be killed, and it would drain the node.

    A slurmd that exits by itself ends the node. One that is killed does not: on a real machine jobs outlive it. On HUP it is
    started again.
    """
    started: list[int] = []

    def start(*_: object) -> None:
        started.append(os.posix_spawnp("slurmd", ["slurmd", "-D", "-N", node], os.environ))

    signal.signal(signal.SIGHUP, start)
    start()
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            # HUP may have come just before this, and its slurmd is waited for a second later.
            time.sleep(1)
        else:
            if pid == started[-1] and os.WIFEXITED(status):
                return os.WEXITSTATUS(status)


def main(arguments: list[str]) -> int:
    node, hosts, staging, spool, spool_target = arguments[:5]
    divider = arguments.index("--")
    shared = [Path(path) for path in arguments[divider + 1 :]]
    socket.sethostname(node)
    bind(Path(spool), Path(spool_target))
    bind(Path(hosts), Path("/etc/hosts"))
    for private in arguments[5:divider]:
        make_private(Path(private), shared, Path(staging))
    return reap_for_ever(node)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
