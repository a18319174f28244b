"""What one cluster takes of the machine, chosen so that clusters and other software do not collide."""

import dataclasses
import hashlib
import json
import socket
from pathlib import Path

from vcluster.errors import UsageError

NODES = ("n1", "n2", "n3")
MOST_GPUS = 16
REPOSITORY = Path(__file__).resolve().parents[3]
# Directories every node has for itself; what lies below them on the host is only seen in a node when shared.
PRIVATE = (Path("/tmp"), Path("/dev/shm"))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one cluster takes of the machine: names, a /24 network, two TCP ports, shared directories.

    `gpus`: of each node, only counted and told to jobs; behind them is nothing."""

    tag: str
    network: str
    controller_port: int
    accounting_port: int
    shares: tuple[str, ...]
    gpus: int = 0

    @property
    def gateway(self) -> str:
        """The host's address in the cluster's network; the controllers listen here."""
        return f"{self.network}.1"

    def address(self, node: str) -> str:
        return f"{self.network}.{11 + NODES.index(node)}"

    @property
    def host_link(self) -> str:
        return f"{self.tag}-up"

    @property
    def switch(self) -> str:
        """Network namespace that holds the bridge, away from the host's firewall rules for bridged traffic."""
        return f"{self.tag}-sw"

    def namespace(self, node: str) -> str:
        return f"{self.tag}-{node}"

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Plan":
        fields = json.loads(path.read_text())
        return cls(**{**fields, "shares": tuple(fields["shares"])})


def tag_of(root: Path) -> str:
    """The name all interfaces and namespaces of this state directory's cluster start with (at most 15 with suffix)."""
    return "lx" + hashlib.sha256(str(root).encode()).hexdigest()[:7]


def shared_directories(root: Path, extra: list[Path]) -> tuple[str, ...]:
    """Directories to bind into the nodes: those below a private directory, outermost first."""
    wanted = sorted({path.resolve() for path in (REPOSITORY, root, *extra)})
    for path in wanted:
        if not path.is_dir():
            raise UsageError(f"--share {path}: no such directory")
        if any(private.is_relative_to(path) for private in PRIVATE):
            raise UsageError(f"--share {path}: nodes keep {PRIVATE[0]} and {PRIVATE[1]} private; share what is below")
    below = [path for path in wanted if any(path.is_relative_to(private) for private in PRIVATE)]
    return tuple(
        str(path) for path in below if not any(path != other and path.is_relative_to(other) for other in below)
    )


def covered(directory: str, shares: tuple[str, ...]) -> bool:
    """Whether ``directory`` is one of ``shares`` or lies below one."""
    return any(Path(directory).is_relative_to(share) for share in shares)


def choose_plan(root: Path, shares: tuple[str, ...], gpus: int, taken_networks: set[str]) -> Plan:
    """Start from the hash of the path, so a cluster mostly keeps its numbers, and step past whatever is taken."""
    seed = int.from_bytes(hashlib.sha256(str(root).encode()).digest()[:4])
    networks = (f"10.{64 + (seed + i) // 256 % 128}.{(seed + i) % 256}" for i in range(128 * 256))
    network = next((n for n in networks if n not in taken_networks), None)
    if network is None:
        raise UsageError("no free network among 10.64.0.0/24 .. 10.191.255.0/24")
    # Below the kernel's range for outgoing connections, so that no client sits on them by chance.
    ports = (20000 + (seed + i) % 10000 for i in range(10000))
    free = (port for port in ports if _port_is_free(port))
    return Plan(tag_of(root), network, next(free), next(free), shares, gpus)


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
