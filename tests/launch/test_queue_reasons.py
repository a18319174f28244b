"""Slurm's words in plain ones."""

import pytest

from lemix_hpc.launch.queue_reasons import ORDINARY, REASONS, way_out, why


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("Resources", "it is next, and starts when enough hosts are free"),
        ("(PartitionTimeLimit)", "`cluster.time` is longer than the partition allows"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-4]", "hosts that it needs are down"),
        (
            "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
            "hosts that it needs",
        ),
        ("QOSMaxGRESPerUser", "your jobs, or this one alone, would exceed the QOS's limit on GPUs; ask for fewer"),
        (
            "QOSMaxJobsPerUserLimit",
            "your jobs, or this one alone, would exceed the QOS's limit on jobs; it starts when",
        ),
        ("QOSMaxWallDurationPerJobLimit", "limit on time; lower `cluster.time`"),
        ("QOSGrpNodeLimit", "all jobs of the QOS together would exceed the QOS's limit on hosts; lower `nodes.count`"),
        ("AssocGrpCpuLimit", "all jobs of the account together would exceed the account's limit on cores"),
        ("AssocGrpGRESMinutes", "the account's limit on the hours that are counted; ask the site"),
        ("AssocMaxSubmitJobLimit", "limit on jobs in the queue; wait until some have ended"),
        ("QOSMinGRES", "it asks for less of GPUs than the QOS demands"),
        ("QOSNotAllowed", "the QOS does not allow what it asks for"),
    ],
)
def test_a_reason_says_what_to_do(reason: str, told: str) -> None:
    assert told in str(why(reason))


def test_what_is_not_known_is_not_guessed() -> None:
    assert why("FancyNewReason") is None and why("") is None
    assert way_out("sbatch: error: something new") is None


def test_each_meaning_is_one_sentence_and_every_ordinary_reason_has_one() -> None:
    assert set(REASONS) >= ORDINARY
    for told in REASONS.values():
        assert not told.endswith(".") and ". " not in told and told[0] in "abcdefghijklmnopqrstuvwxyz`S"


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        ("invalid partition specified: nowhere", "`sinfo -s`"),
        ("Invalid account or account/partition combination specified", "`cluster.account`"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "`cluster.time`"),
        (
            "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
            "lower `nodes.count`",
        ),
        ("Requested node configuration is not available", "no host has what"),
        ("Memory specification can not be satisfied", "lower `cluster.mem`"),
        ("Unable to contact slurm controller (connect failure)", "try again later"),
    ],
)
def test_a_refusal_says_what_to_do(refusal: str, told: str) -> None:
    assert told in str(way_out(refusal))
