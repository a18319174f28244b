"""From the records of a run to what its figures are drawn from."""

from __future__ import annotations

from lemix_hpc.records.reader import Records
from lemix_hpc.records.schema import ServedTask
from lemix_hpc.report.aggregates.requests import Requests
from lemix_hpc.report.aggregates.schema import RunAggregates
from lemix_hpc.report.aggregates.training import MicroBatches
from lemix_hpc.report.aggregates.waits import WaitsTally
from lemix_hpc.report.aggregates.work import Work
from lemix_hpc.report.recent import AtHand, in_order


def gather(run: Records) -> RunAggregates:
    """One pass over its tasks and one over its work, which are read one by one and not kept. Raises UserError for broken
    records."""
    facts = run.facts
    requests, micro_batches = Requests(facts), MicroBatches()
    for task in run.tasks():
        if isinstance(task, ServedTask):
            requests.add(task)
        else:
            requests.add_training(task)
            micro_batches.add(task)
    served = AtHand(task for task in run.tasks() if isinstance(task, ServedTask))
    work, waits = Work(facts, served), WaitsTally(served, requests.slowest_tenth_s())
    for stretch in in_order(run.stretches()):
        work.add(stretch)
        if facts.spans == "all":
            waits.add(stretch)
    return RunAggregates(
        nodes=facts.nodes,
        stages=facts.stages,
        t0_s=facts.t0_s,
        slo_factors=facts.slo_factors,
        limits_ms=facts.slo_ms,
        curves=requests.curves(),
        load=requests.load(),
        forecasts=requests.forecasts(),
        training=micro_batches.training(),
        placement=requests.placement(),
        lanes=work.lanes(),
        versions=work.versions(),
        waits=waits.waits(),
        memory=facts.memory,
        spans=facts.spans,
    )
