"""`lemix doctor` on how a site ends jobs; tests/slurm/test_runs.py asks a real cluster."""

from typing import Any

import pytest

from lemix_hpc.launch.survival_checks import parse_config, parse_partition, survival_checks

CONFIG = """\
Configuration data as of 2026-11-25T20:00:00
JobRequeue              = {requeue}
KillWait                = {wait} sec
PreemptMode             = REQUEUE
PreemptType             = {kind}
SlurmctldParameters     = {parameters}
"""
PARTITIONS = """\
PartitionName=main AllowGroups=ALL Default=YES GraceTime=0 PreemptMode=REQUEUE State=UP
PartitionName=patient AllowGroups=ALL Default=NO GraceTime=20 PreemptMode={mode} State=UP
PartitionName=urgent AllowGroups=ALL Default=NO GraceTime=0 PreemptMode=OFF State=UP
"""
SIGNAL = "preempt_send_user_signal"


def checked(
    partition: str | None = None,
    *,
    requeue: str = "1",
    wait: int = 30,
    kind: str = "preempt/partition_prio",
    parameters: str = "(null)",
    mode: str = "REQUEUE",
    wanted: bool = True,
) -> dict[str, tuple[str, str]]:
    config = parse_config(CONFIG.format(requeue=requeue, wait=wait, kind=kind, parameters=parameters))
    found = parse_partition(PARTITIONS.format(mode=mode), partition)
    return {check.name: (check.verdict, check.text) for check in survival_checks(config, found, requeue=wanted)}


@pytest.mark.parametrize(
    ("partition", "site", "verdict", "text"),
    [
        (None, {"kind": "preempt/none"}, "ok", "jobs are not preempted on this site"),
        ("urgent", {}, "ok", "jobs in partition urgent are not preempted"),
        (None, {"parameters": SIGNAL}, "warn", "has no time to drain, and is started again"),
        ("patient", {}, "warn", "has no time to drain, and is started again"),
        (
            "patient",
            {"parameters": f"idle_on_node_suspend,{SIGNAL}"},
            "ok",
            "has 20 s to drain, and then is started again",
        ),
        ("patient", {"parameters": SIGNAL, "mode": "CANCEL"}, "warn", "does not come back: `lemix resume` goes on"),
        ("patient", {"mode": "GANG,SUSPEND"}, "warn", "are suspended"),
        ("unknown", {}, "warn", "a preempted job on this site"),
    ],
)
def test_what_a_preemption_means(partition: str | None, site: dict[str, Any], verdict: str, text: str) -> None:
    found = checked(partition, **site)["preemption"]
    assert (found[0], text in found[1]) == (verdict, True), found


def test_whether_jobs_come_back() -> None:
    assert checked()["requeue"] == ("ok", "Slurm starts jobs again after a preemption or a failed host")
    assert "--requeue" in checked(requeue="0")["requeue"][1]
    assert "`lemix resume` goes on" in checked(wanted=False)["requeue"][1]


def test_how_long_the_end_may_take() -> None:
    assert checked()["KillWait"] == ("ok", "a job that Slurm ends has 30 s to note why")
    verdict, text = checked(wait=5)["KillWait"]
    assert verdict == "warn" and "ask for KillWait=30" in text
