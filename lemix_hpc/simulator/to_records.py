"""From the arrays of a simulated run to the records that a real run writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lemix_hpc.policy.execution_rules import BACKWARD, COMMIT, FORWARD, SERVE
from lemix_hpc.records.schema import ServedTask, Span, SpanKind, TrainedTask
from lemix_hpc.simulator.cluster_state import ClusterState
from lemix_hpc.simulator.dtypes import COPY, FINISHED, NONE, Records
from lemix_hpc.workload.tasks import Request

KINDS: dict[int, SpanKind] = {SERVE: "serve", COMMIT: "step", BACKWARD: "backward", FORWARD: "forward", COPY: "copy"}


def spans(cluster: ClusterState, names: Sequence[str]) -> list[Span]:
    """All spans in order of their ends. `names`: of all tasks; work of none of them has no name."""
    done = cluster.spans[: cluster.run["spans"][0]]
    named = [*names, ""]
    columns = _columns(done, "node stage task kind start end version batch")
    return [
        Span(node, stage, named[task], KINDS[kind], start, end, version, batch)
        for node, stage, task, kind, start, end, version, batch in columns
    ]


def served(cluster: ClusterState, requests: Sequence[Request]) -> list[ServedTask]:
    """All requests in order of their numbers; those that the policy refused are rejected."""
    rows = _columns(
        cluster.requests,
        "outcome arrival node placed first_token finished produced first_version last_version predicted"
        " predicted_first predicted_token",
    )
    tasks = []
    for number, (request, row) in enumerate(zip(requests, rows, strict=True)):
        outcome, arrival, node, placed, first_token, finished, produced, first, last, predicted, ttft, tpot = row
        if outcome != FINISHED:
            tasks.append(
                ServedTask(
                    request.id, "rejected", arrival, request.prompt_tokens, number=number, service=request.service
                )
            )
            continue
        tasks.append(
            ServedTask(
                id=request.id,
                outcome="finished",
                arrival=arrival,
                prompt_tokens=request.prompt_tokens,
                node=node,
                placed=placed,
                first_token=first_token,
                finished=finished,
                output=[NONE] * produced,
                versions=(first, last),
                predicted_response_s=predicted,
                predicted_ttft_s=ttft or None,
                predicted_tpot_s=tpot or None,
                number=number,
                service=request.service,
            )
        )
    return tasks


def trained(cluster: ClusterState, names: Sequence[str], rows: int) -> list[TrainedTask]:
    """All micro-batches that were trained on, in order of their numbers. `names`: of all; `rows`: sequences in each."""
    steps = cluster.groups["step"][cluster.micro_batches["group"]]
    columns = _columns(cluster.micro_batches, "outcome eligible node placed finished")
    first = len(cluster.requests)
    return [
        TrainedTask(
            id=name,
            outcome="finished",
            eligible=eligible,
            tokens=rows * length,
            node=node,
            placed=placed,
            finished=finished,
            step=step,
            number=first + number,
        )
        for number, (name, length, step, (outcome, eligible, node, placed, finished)) in enumerate(
            zip(names, cluster.lengths.tolist(), steps.tolist(), columns, strict=True)
        )
        if outcome == FINISHED
    ]


def _columns(records: Records, names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(records[name].tolist() for name in names.split()), strict=True))
