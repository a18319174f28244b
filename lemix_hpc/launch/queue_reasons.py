"""What Slurm's words for a job that waits, was refused or has failed mean for a run, each in one sentence with the way out.

The words are those of https://slurm.schedmd.com/job_reason_codes.html (21.08 to 25.05) and of sbatch's messages.
"""

from __future__ import annotations

import re

SHORTER = "a shorter `cluster.time` may let it in earlier"
_HELD = "it starts after `scontrol release JOB`"
_FAILED_START = "the hosts could not start it; `lemix logs` and the site's administrators know more"

REASONS = {
    "Priority": f"jobs of higher priority come first; {SHORTER}",
    "Resources": f"it is next, and starts when enough hosts are free; {SHORTER}, and so may fewer `nodes.count` or GPUs",
    "None": "Slurm has not looked at it yet; ask again in a minute",
    "Dependency": "it waits for the end of another job, as `cluster.sbatch.dependency` or a chain of jobs asks",
    "DependencyNeverSatisfied": "the job that it waits for did not end as asked, so it never starts; `lemix cancel` it, and "
    "submit it without that dependency",
    "BeginTime": "its time to begin is not there yet; a job that was requeued waits for two minutes or so",
    "Cleaning": "it ran before and is being tidied up; it starts again by itself",
    "JobHeldUser": f"you or a dependency hold it; {_HELD}",
    "JobHeldAdmin": "the site's administrators hold it; ask them why",
    "JobHoldMaxRequeue": f"it was requeued too often, and is held; see `lemix logs` for why it ends, and then {_HELD}",
    "PartitionDown": "the partition takes no jobs now; give another `cluster.partition`, or wait",
    "PartitionInactive": "the partition starts no jobs now; give another `cluster.partition`, or wait",
    "PartitionNodeLimit": "the partition allows no job of so many hosts; lower `nodes.count`, put more nodes on a host with "
    "`cluster.nodes_per_host`, or give another `cluster.partition`",
    "PartitionTimeLimit": "`cluster.time` is longer than the partition allows, which `sinfo -o '%P %l'` shows; lower it, and "
    "`lemix submit --renew` makes a chain of jobs",
    "PartitionConfig": "the partition does not allow what the job asks for; `scontrol show partition` says what it allows",
    "ReqNodeNotAvail": "hosts that it needs are down, drained, or reserved, say for maintenance; a `cluster.time` that ends "
    "before that, or another `cluster.partition`, `cluster.nodelist` or `cluster.exclude` may help",
    "Nodes required for job are DOWN": "hosts that it needs are down, drained, or kept for jobs of higher priority; another "
    "`cluster.partition`, `cluster.nodelist` or `cluster.exclude` may help",
    "NodeDown": "a host that it needs is down; exclude it with `cluster.exclude`, or wait",
    "Reservation": "its reservation has not begun, or is in use; `scontrol show reservation` says until when",
    "ReservationDeleted": "its reservation is gone; cancel it, and submit it with another `cluster.reservation`, or none",
    "BadConstraints": "no host has what `cluster.constraint` and the other keys of `cluster` ask for; `sinfo -o '%P %f %G'` "
    "shows what they have",
    "Licenses": "it waits for a license that `cluster.sbatch.licenses` asks for",
    "InvalidAccount": "the account does not exist or is not yours; give another `cluster.account`",
    "InvalidQOS": "the QOS does not exist or is not yours; give another `cluster.qos`",
    "AccountNotAllowed": "the partition does not take this account; give another `cluster.account` or `cluster.partition`",
    "AssociationJobLimit": "your account runs as many jobs as it may; it starts when one of them has ended",
    "AssociationResourceLimit": "your account uses as much as it may; it starts when others of its jobs have ended",
    "AssociationTimeLimit": "your account has used up its time; ask for more, or give another `cluster.account`",
    "JobArrayTaskLimit": "as many tasks of its array run as may; it starts when one has ended",
    "MaxMemPerLimit": "it asks for more memory than it may; lower `cluster.mem`",
    "FrontEndDown": "a host of Slurm itself is down; wait",
    "JobLaunchFailure": _FAILED_START,
    "launch failed requeued held": f"{_FAILED_START}, and it is held: {_HELD}",
    "job requeued in held state": f"it was requeued and is held; {_HELD}",
    "NonZeroExitCode": "its batch script ended with an error; `lemix logs` shows what was said",
    "RaisedSignal": "a signal ended it, as `scancel` sends one, or the host when memory is short",
    "OutOfMemory": "its host had too little memory for it; raise `cluster.mem`, see `lemix plan`",
    "TimeLimit": "its time was over; `lemix resume` goes on with the run",
    "SystemFailure": "Slurm or a host failed; `lemix resume` goes on with the run",
}
"""By Slurm's word, without what may follow it."""

ORDINARY = frozenset({"None", "Priority", "Resources", "Dependency", "BeginTime"})
"""Reasons that pass by themselves."""

_REFUSALS = {
    r"invalid partition": "`sinfo -s` lists the partitions; give one of them as `cluster.partition`",
    r"invalid account|account/partition combination": "`sacctmgr show associations user=$USER` lists your accounts; give "
    "one of them as `cluster.account`",
    r"invalid qos": "`sacctmgr show associations user=$USER format=qos` lists yours; give one of them as `cluster.qos`",
    r"accounting/qos policy": "it asks for more jobs, hosts, GPUs or time than your account or QOS may; lower `nodes.count`, "
    "the GPUs or `cluster.time`",
    r"time limit": REASONS["PartitionTimeLimit"],
    r"node configuration is not available": REASONS["BadConstraints"],
    r"memory specification": "no host has so much memory; lower `cluster.mem`, see `lemix plan`",
    r"node count specification|more processors requested": REASONS["PartitionNodeLimit"],
    r"invalid (generic resource|gres)": "`sinfo -o '%P %G'` shows which GPUs hosts have, and how Slurm calls them; correct "
    "`cluster.gres` or `cluster.gpus_per_node`",
    r"invalid feature": "`sinfo -o '%P %f'` lists the features of hosts; correct `cluster.constraint`",
    r"unable to contact|connection refused|socket timed out": "Slurm's controller does not answer; try again later",
}
"""By what sbatch's message has in it, in small letters."""

_WHAT = (
    ("minutes|mins", "the hours that are counted", "ask the site for more, or give another `cluster.account`"),
    ("wall|time", "time", "lower `cluster.time`; `lemix submit --renew` makes a chain of jobs"),
    ("submit", "jobs in the queue", "wait until some have ended"),
    ("job", "jobs", "it starts when one of them has ended"),
    ("gres|gpu", "GPUs", "ask for fewer, or wait until some are given back"),
    ("cpu", "cores", "lower `cluster.cpus_per_task`, or wait until some are given back"),
    ("mem", "memory", "lower `cluster.mem`, or wait until some is given back"),
    ("node", "hosts", "lower `nodes.count`, or wait until some are given back"),
    (
        "billing|bb|energy|license",
        "what it is billed for",
        "ask for less, or give another `cluster.account` or `cluster.qos`",
    ),
)
"""What a limit is on, by parts of Slurm's word for it, and the way out."""


def why(reason: str) -> str | None:
    """What a reason of Slurm means for a run, in one sentence; None for one that is not known here.

    `reason` as squeue's `%r` and scontrol give it, such as `QOSMaxGRESPerUser` or `ReqNodeNotAvail, UnavailableNodes:n[1-4]`.
    """
    word = re.split(r"[,|]", reason.strip().strip("()"))[0].strip()
    return REASONS.get(word) or _limit(word)


def way_out(refusal: str) -> str | None:
    """What may help against a message with which sbatch refused a job, None if nobody knows."""
    return next((told for pattern, told in _REFUSALS.items() if re.search(pattern, refusal.lower())), None)


def _limit(word: str) -> str | None:
    """Of the many limits of associations and QOS: whose it is, and on what."""
    found = re.fullmatch(r"(Assoc|QOS)(Grp|Max|Min)?(\w+)", word)
    if found is None:
        return None
    whose = "account" if found[1] == "Assoc" else "QOS"
    for part, what, then in _WHAT:
        if re.search(part, found[3].lower()):
            if found[2] == "Min":
                return (
                    f"it asks for less of {what} than the {whose} demands; ask for more, or give another `cluster.qos`"
                )
            many = f"all jobs of the {whose} together" if found[2] == "Grp" else "your jobs, or this one alone,"
            return f"{many} would exceed the {whose}'s limit on {what}; {then}"
    return f"the {whose} does not allow what it asks for; give another `cluster.qos` or `cluster.account`"
