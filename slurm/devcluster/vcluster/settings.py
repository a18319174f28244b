"""The files Slurm and munge read: slurm.conf, gres.conf, slurmdbd.conf, the hosts table and the key."""

import os
import socket
import stat
from pathlib import Path

from vcluster.layout import Layout
from vcluster.plan import NODES, Plan

# Claimed by each node whatever the machine has: jobs of many small ranks shall fit.
CPUS_PER_NODE = 32
MEMORY_PER_NODE_MIB = 6000
# Debian's own spool path: each node binds a directory of its own there, so that the sockets of Slurm's PMIx plugin
# keep a short path wherever the state directory lies.
SPOOL = Path("/var/lib/slurm/slurmd")

SLURM_CONF = """\
ClusterName={tag}
SlurmctldHost={host}({gateway})
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge},cred_expire=5
CredType=cred/munge
StateSaveLocation={controller}
SlurmdSpoolDir={spool}
SlurmctldPidFile={run}/slurmctld.slurm.pid
SlurmdPidFile={run}/slurmd-%n.slurm.pid
SlurmctldLogFile={log}/detail/slurmctld.log
SlurmdLogFile={log}/detail/slurmd-%n.log
SlurmctldDebug=debug
SlurmdDebug=debug
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=100000,bf_interval=1,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting_port}
AccountingStoragePass={munge}
JobCompType=jobcomp/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=15
InactiveLimit=0
MinJobAge=300
KillWait=10
WaitTime=0
SlurmdParameters=config_overrides
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=patient Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""

GRES_CONF = """\
AutoDetect=off
"""

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={munge},cred_expire=5
DbdHost=localhost
DbdPort={accounting_port}
SlurmUser=root
LogFile={log}/detail/slurmdbd.log
PidFile={run}/slurmdbd.slurm.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
"""


def write_settings(layout: Layout, plan: Plan) -> None:
    """Write every file into ``layout.etc``."""
    values = {
        "tag": plan.tag,
        "host": socket.gethostname().partition(".")[0],
        "gateway": plan.gateway,
        "controller_port": plan.controller_port,
        "accounting_port": plan.accounting_port,
        "munge": layout.munge_socket,
        "controller": layout.controller_state,
        "run": layout.run,
        "log": layout.log,
        "spool": SPOOL,
        "nodes": "\n".join(_node_line(node, plan) for node in NODES),
    }
    layout.slurm_conf.write_text(SLURM_CONF.format(**values))
    _write_gpus(layout, plan.gpus)
    _write_private(layout.etc / "slurmdbd.conf", SLURMDBD_CONF.format(**values).encode())
    _write_private(layout.etc / "munge.key", os.urandom(128))
    (layout.etc / "hosts").write_text(_hosts_table(plan))


def _write_gpus(layout: Layout, count: int) -> None:
    devices = [layout.etc / f"gpu{number}" for number in range(count)]
    for device in devices:
        # Slurm takes nothing but devices; this one is another /dev/null.
        os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    lines = "".join(f"Name=gpu File={device}\n" for device in devices)
    (layout.etc / "gres.conf").write_text(GRES_CONF + lines)


def _node_line(node: str, plan: Plan) -> str:
    return (
        f"NodeName={node} NodeHostname={node} NodeAddr={plan.address(node)} CPUs={CPUS_PER_NODE} Boards=1 "
        f"SocketsPerBoard=1 CoresPerSocket={CPUS_PER_NODE} ThreadsPerCore=1 "
        f"RealMemory={MEMORY_PER_NODE_MIB} {f'Gres=gpu:{plan.gpus} ' if plan.gpus else ''}State=UNKNOWN"
    )


def _hosts_table(plan: Plan) -> str:
    """Gloo and other rendezvous code look up their own hostname, which no name server knows."""
    nodes = "".join(f"{plan.address(node)} {node}\n" for node in NODES)
    return f"127.0.0.1 localhost\n{plan.gateway} {socket.gethostname()}\n{nodes}"


def _write_private(path: Path, content: bytes) -> None:
    """munged and slurmdbd refuse secrets that others may read."""
    path.touch(mode=0o600)
    path.write_bytes(content)
