"""The cluster as a whole: up, down, and what befalls its nodes."""

import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from vcluster import network, node_init
from vcluster.commands import clean_environment, output, run, wait_until
from vcluster.daemons import DAEMONS, START_TIMEOUT_S, Daemons
from vcluster.errors import UsageError
from vcluster.layout import Layout
from vcluster.plan import NODES, PRIVATE, Plan, choose_plan, covered, tag_of
from vcluster.processes import children, name_of
from vcluster.settings import SPOOL, write_settings

IN_SERVICE = ("idle", "mixed", "allocated", "completing")


class Cluster:
    """One state directory's cluster, up or down."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self.environment = clean_environment(self.layout.slurm_conf)
        self._daemons = Daemons(self.layout, self.environment)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One changing command at a time; a second one waits."""
        self.layout.claim()
        with self.layout.marker.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def plan(self) -> Plan:
        if not self.layout.plan.exists():
            raise UsageError(f"no cluster is up in {self.layout.root}; run `devcluster up` first")
        return Plan.load(self.layout.plan)

    def dead(self) -> list[str]:
        """Names of the daemons and nodes that do not run."""
        return [name for name in (*DAEMONS, *NODES) if self.layout.process(name).pid() is None]

    def is_up(self) -> bool:
        """All daemons run and the controller answers; nodes may be crashed."""
        return not set(DAEMONS) & set(self.dead()) and self._daemons.controller_answers()

    def up(self, shares: tuple[str, ...], gpus: int | None = None) -> str:
        """Start the cluster unless it is up; a sentence about what was done. `gpus`: of each node, by default none."""
        dead = self.dead()
        if not dead and self._daemons.controller_answers():
            counted = self.plan().gpus
            if gpus not in (None, counted):
                raise UsageError(
                    f"the cluster is up, with {counted} GPUs on each node instead of {gpus}; run `devcluster down` first"
                )
            unshared = [share for share in shares if not covered(share, self.plan().shares)]
            if unshared:
                raise UsageError(
                    f"the cluster is up, but does not share {', '.join(unshared)}; run `devcluster down` first"
                )
            return f"The cluster in {self.layout.root} is already up."
        if len(dead) < len(DAEMONS) + len(NODES):
            wrong = f"{', '.join(dead)} not running" if dead else "slurmctld does not answer"
            print(f"Found half a cluster ({wrong}); starting afresh.", file=sys.stderr)
        began = time.monotonic()
        self.down()
        self.layout.wipe()
        plan = choose_plan(self.layout.root, shares, gpus or 0, network.taken_networks())
        plan.save(self.layout.plan)
        try:
            self._start_all(plan)
        except BaseException:
            # Also on Ctrl-C: half a cluster is of no use to anyone.
            self.down()
            raise
        return f"The cluster in {self.layout.root} is up ({', '.join(NODES)}) after {time.monotonic() - began:.1f} s."

    def down(self) -> str:
        """End all that was started, in reverse; a sentence about what was done."""
        was_running = len(self.dead()) < len(DAEMONS) + len(NODES)
        for node in NODES:
            self.crash(node)
        for name in reversed(DAEMONS):
            self.layout.process(name).end(signal.SIGTERM)
        network.remove(tag_of(self.layout.root))
        self.layout.plan.unlink(missing_ok=True)
        return f"The cluster in {self.layout.root} is down{'' if was_running else ' already'}."

    def crash(self, node: str) -> None:
        """Cut the node's power: every process in it dies at once. Slurm has to find out by itself."""
        self.layout.process(node).end(signal.SIGKILL)

    def revive(self, node: str) -> None:
        """Reboot the node, and wait until Slurm has it in service again."""
        self.crash(node)
        before = int(time.time())
        self._start_node(self.plan(), node)
        self._wait_for_node(node, registered_since=before)

    def cut(self, node: str) -> None:
        """Take the node off the network; what runs on it runs on."""
        network.set_link(self.plan(), node, "down")

    def join(self, node: str) -> None:
        """Put the node back on the network, and wait until Slurm has it in service again."""
        network.set_link(self.plan(), node, "up")
        self._wait_for_node(node, registered_since=0)

    def kill(self, name: str) -> None:
        """Kill -9 of the controller, or of a node's slurmd; jobs run on."""
        if name in NODES:
            self._kill_slurmd(name)
        else:
            self.layout.process(name).end(signal.SIGKILL)

    def restart(self, name: str) -> None:
        """Start the controller, or a node's slurmd, anew, as a machine's service manager would, and wait until it serves."""
        self.kill(name)
        if name not in NODES:
            self._daemons.start_controller()
            # Until the nodes have told it that they are there, it starts nothing on them.
            wait_until("nodes known", lambda: "unknown" not in self.node_states().values(), START_TIMEOUT_S)
            return
        init = self._init_of(name)
        if init is None:
            raise UsageError(f"{name} has crashed; `devcluster revive {name}` boots it")
        before = int(time.time())
        os.kill(init, signal.SIGHUP)
        self._wait_for_node(name, registered_since=before)

    def node_states(self) -> dict[str, str]:
        """Slurm's view of every node, such as ``idle`` or ``down*``; a star means it does not answer."""
        lines = output("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T", env=self.environment).splitlines()
        return dict(line.split(maxsplit=1) for line in lines)

    def exports(self) -> dict[str, str]:
        """What a client needs in its environment."""
        self.plan()
        return {
            "SLURM_CONF": str(self.layout.slurm_conf),
            "LEMIX_DEVCLUSTER": str(self.layout.root),
            # Jobs run as the user who submits them, often root here; real clusters have no such need.
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        }

    def _start_all(self, plan: Plan) -> None:
        write_settings(self.layout, plan)
        network.create(plan)
        self._daemons.start_munged()
        self._daemons.start_database()
        self._daemons.start_accounting()
        self._daemons.start_controller()
        for node in NODES:
            self._start_node(plan, node)
        for node in NODES:
            self._wait_for_node(node, registered_since=1)
        self._daemons.wait_for_registration(plan)
        # A firewall on the host that keeps the nodes from calling back would let this srun wait for ever.
        everywhere = (
            "timeout",
            "60",
            "srun",
            f"--nodes={len(NODES)}",
            f"--ntasks={len(NODES)}",
            "--chdir=/",
            "hostname",
        )
        run(*everywhere, step="first job", env=self.environment)

    def _start_node(self, plan: Plan, node: str) -> None:
        separate = ["--uts", "--mount", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child"]
        into = ["nsenter", f"--net={network.NAMESPACES / plan.namespace(node)}", "unshare", *separate]
        staging = self.layout.run / f"{node}.staging"
        staging.mkdir(exist_ok=True)
        places = [self.layout.etc / "hosts", staging, self.layout.spool / node, SPOOL, *PRIVATE]
        init = [sys.executable, "-I", node_init.__file__, node, *map(str, places), "--", *plan.shares]
        self.layout.process(node).start([*into, *init], self.environment)

    def _init_of(self, node: str) -> int | None:
        """The first process of a node; None if it has crashed."""
        outside = self.layout.process(node).pid()
        return next(iter(children(outside)), None) if outside is not None else None

    def _kill_slurmd(self, node: str) -> None:
        init = self._init_of(node)
        for pid in children(init) if init is not None else ():
            # The steps of jobs have come to be the first process's own, too.
            if name_of(pid) == "slurmd":
                os.kill(pid, signal.SIGKILL)

    def _wait_for_node(self, node: str, registered_since: int) -> None:
        def in_service() -> bool:
            state = self.node_states().get(node, "")
            if state.startswith(("down", "drain")):
                # Slurm does not ping a node it holds for down, nor forgets over a reboot that it drained one.
                output("scontrol", "update", f"nodename={node}", "state=resume", env=self.environment)
            return state in IN_SERVICE and self._registered_at(node) >= registered_since

        wait_until(f"node {node} in service", in_service, START_TIMEOUT_S, self.layout.process(node))

    def _registered_at(self, node: str) -> float:
        """When the slurmd that Slurm knows of was started, seconds since the epoch; 0 if it never registered."""
        record = output("scontrol", "--oneliner", "show", "node", node, env=self.environment)
        fields = dict(field.split("=", 1) for field in record.split() if "=" in field)
        started = fields.get("SlurmdStartTime", "None")
        return 0.0 if started in ("None", "Unknown") else datetime.fromisoformat(started).timestamp()
