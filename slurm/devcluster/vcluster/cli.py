"""The command line of ``devcluster``."""

import argparse
import shlex
import signal
import sys
from pathlib import Path

from vcluster import packages
from vcluster.cluster import Cluster
from vcluster.daemons import DAEMONS
from vcluster.errors import DevclusterError, UsageError
from vcluster.layout import state_directory
from vcluster.plan import MOST_GPUS, NODES, shared_directories

NODE_COMMANDS = {
    "crash": "cut a node's power; Slurm has to find out by itself",
    "revive": "boot a crashed node and wait until it is in service",
    "cut": "take a node off the network; its jobs run on",
    "join": "put a cut-off node back and wait until it is in service",
}
DAEMON_COMMANDS = {
    "kill": "kill -9 the controller, or a node's slurmd; jobs run on",
    "restart": "start it anew, as a machine's service manager would, and wait until it serves",
}
KILLABLE = ("slurmctld", *NODES)
DONE = {"crash": "has crashed", "revive": "is in service", "cut": "is cut off", "join": "is in service"}


def main() -> int:
    arguments = _parser().parse_args()
    # Ended from outside, `up` still takes down what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return _dispatch(arguments)
    except DevclusterError as error:
        print(f"devcluster {arguments.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"devcluster {arguments.command}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _dispatch(arguments: argparse.Namespace) -> int:
    if arguments.command == "install":
        print(packages.install())
        return 0
    cluster = Cluster(state_directory(arguments.state))
    match arguments.command:
        case "up":
            packages.require_machine()
            with cluster.locked():
                shares = shared_directories(cluster.layout.root, [Path(path) for path in arguments.share])
                print(cluster.up(shares, arguments.gpus))
        case "down":
            _down(cluster)
        case "status":
            return _status(cluster)
        case "env":
            _require_up(cluster)
            for name, value in cluster.exports().items():
                print(f"export {name}={shlex.quote(value)}")
        case "kill" | "restart" as command:
            packages.require_root_for_namespaces()
            cluster.plan()
            with cluster.locked():
                getattr(cluster, command)(arguments.daemon)
            what = f"The slurmd of {arguments.daemon}" if arguments.daemon in NODES else f"The {arguments.daemon}"
            print(f"{what} {'is killed' if command == 'kill' else 'runs again'}.")
        case command:
            packages.require_root_for_namespaces()
            _require_up(cluster)
            with cluster.locked():
                getattr(cluster, command)(arguments.node)
            print(f"Node {arguments.node} {DONE[command]}.")
    return 0


def _down(cluster: Cluster) -> None:
    root = cluster.layout.root
    if not root.exists():
        print(f"There is no cluster in {root}.")
        return
    packages.require_root_for_namespaces()
    with cluster.locked():
        print(cluster.down())


def _require_up(cluster: Cluster) -> None:
    if not cluster.is_up():
        raise UsageError(f"no cluster is up in {cluster.layout.root}; run `devcluster up` first")


def _status(cluster: Cluster) -> int:
    """Print a table of daemons and nodes; exit code 0 when the controllers are up, 1 when not."""
    answers = cluster.is_up()
    states = cluster.node_states() if answers else {}
    print(f"state directory  {cluster.layout.root}")
    for name in (*DAEMONS, *NODES):
        pid = cluster.layout.process(name).pid()
        print(f"{name:<10} {f'pid {pid}' if pid else 'not running':<14} {states.get(name, '')}".rstrip())
    return 0 if answers else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="devcluster",
        description="A real Slurm cluster of three virtual nodes on this machine; see docs/devcluster.md.",
        epilog="Exit codes: 0 done, 1 a step failed, 2 wrong use, 3 the machine lacks something (root, apt, packages).",
    )
    parser.add_argument(
        "--state", metavar="DIR", help="state directory (default: $LEMIX_DEVCLUSTER, else .slurm-devcluster here)"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("install", help="install the Debian packages that are missing")
    up = commands.add_parser("up", help="start the cluster")
    up.add_argument(
        "--share",
        action="append",
        default=[],
        metavar="DIR",
        help="directory below /tmp or /dev/shm to show to the nodes",
    )
    up.add_argument(
        "--gpus",
        type=int,
        choices=range(MOST_GPUS + 1),
        metavar="N",
        help=f"GPUs that each node counts, at most {MOST_GPUS}; behind them is nothing (default: 0)",
    )
    commands.add_parser("down", help="end the cluster and remove what it took of the machine")
    commands.add_parser("status", help="show daemons and nodes")
    commands.add_parser("env", help="print the variables a shell needs, for eval")
    for name, text in NODE_COMMANDS.items():
        commands.add_parser(name, help=text).add_argument("node", choices=NODES)
    for name, text in DAEMON_COMMANDS.items():
        commands.add_parser(name, help=text).add_argument("daemon", choices=KILLABLE)
    return parser
