"""How a site's Slurm ends jobs, and what that means for runs that are to go on: pure, from what `scontrol` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from lemix_hpc.launch.check import Check
from lemix_hpc.launch.supervisor import PATIENCE_S

Settings = Mapping[str, str]


def parse_config(text: str) -> Settings:
    """What `scontrol show config` prints, by name."""
    return dict(re.findall(r"^(\w+)\s*= (.*?)\s*$", text, re.MULTILINE))


def parse_partition(text: str, name: str | None) -> Settings | None:
    """Of the lines that `scontrol --oneliner show partition` prints, the partition with this name or, without one, the default.

    None if there is none.
    """
    for line in text.splitlines():
        settings = dict(word.partition("=")[::2] for word in line.split())
        if settings.get("PartitionName") == name or (name is None and settings.get("Default") == "YES"):
            return settings
    return None


def survival_checks(config: Settings, partition: Settings | None, *, requeue: bool) -> Iterator[Check]:
    """What follows when Slurm ends a job early. `requeue`: the recipe's `cluster.requeue`."""
    yield _requeue(config, requeue=requeue)
    yield _preemption(config, partition or {})
    yield _kill_wait(config)


def _requeue(config: Settings, *, requeue: bool) -> Check:
    if not requeue:
        text = "cluster.requeue is false: `lemix resume` goes on after a time limit, a preemption or a failed host"
    elif config.get("JobRequeue") == "0":
        text = "not by default on this site (JobRequeue=0); jobs of runs ask for it with --requeue"
    else:
        text = "Slurm starts jobs again after a preemption or a failed host"
    return Check("requeue", "ok", text)


def _preemption(config: Settings, partition: Settings) -> Check:
    name = "preemption"
    if config.get("PreemptType", "preempt/none") == "preempt/none":
        return Check(name, "ok", "jobs are not preempted on this site")
    mode = partition.get("PreemptMode", config.get("PreemptMode", "")).upper()
    where = f"in partition {partition['PartitionName']}" if "PartitionName" in partition else "on this site"
    if mode == "OFF":
        return Check(name, "ok", f"jobs {where} are not preempted")
    if "SUSPEND" in mode:
        return Check(name, "warn", f"jobs {where} are suspended: clients wait meanwhile; ask for PreemptMode=REQUEUE")
    again = mode == "REQUEUE"
    back = "is started again" if again else "does not come back: `lemix resume` goes on, or use --renew"
    grace = partition.get("GraceTime", "0")
    if "preempt_send_user_signal" in config.get("SlurmctldParameters", "") and grace != "0":
        return Check(
            name, "ok" if again else "warn", f"a preempted job {where} has {grace} s to drain, and then {back}"
        )
    text = (
        f"a preempted job {where} has no time to drain, and {back}; nothing that was promised is lost, but training since "
        "the last checkpoint is done again: set training.checkpoint.every_s, or ask the administrators for "
        "SlurmctldParameters=preempt_send_user_signal and a GraceTime"
    )
    return Check(name, "warn", text)


def _kill_wait(config: Settings) -> Check:
    name = "KillWait"
    found = re.match(r"\d+", config.get(name, ""))
    if found is None:
        return Check(name, "warn", "not told by scontrol; it should be more than a few seconds")
    seconds = int(found[0])
    if seconds <= PATIENCE_S:
        text = (
            f"Slurm kills what is left of a job {seconds} s after its signal: less than the {PATIENCE_S:g} s that a run may "
            "take to note why it ends; the next attempt goes by the accounting then; or ask for KillWait=30"
        )
        return Check(name, "warn", text)
    return Check(name, "ok", f"a job that Slurm ends has {seconds} s to note why")
