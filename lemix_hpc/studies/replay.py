"""The load of a recorded run, real or simulated, under another policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from msgspec import structs

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.policy.events import RequestArrived
from lemix_hpc.records.event_log import read_events
from lemix_hpc.records.reader import Records, RunRecords, RunStream, record_directories, stream_run
from lemix_hpc.records.schema import ServedTask
from lemix_hpc.report.build import summarise
from lemix_hpc.run_setup.training_feed import amount
from lemix_hpc.studies.recorded_run import real_hardware
from lemix_hpc.studies.simulated_run import Simulated, best_split, is_open, simulate_workload
from lemix_hpc.workload.load import Workload
from lemix_hpc.workload.request_stream import RequestStream
from lemix_hpc.workload.tasks import Request
from lemix_hpc.workload.training import stream


def replay(run_dir: Path, recipe: Recipe, *, messages: float = 1.0) -> tuple[RunStream, Simulated]:
    """What a run has recorded, and the same load simulated with a recipe that differs in its policy.

    Arrivals and lengths are the recorded ones, stage times those that the run learned, what passes wait for messages is what it
    was in the mean, or `messages` times that, T0 and with it the limits are the run's.
    Raises UserError for records that are missing or broken.
    """
    records = stream_run(run_dir)
    hardware = real_hardware(run_dir, recipe)
    requests, refused = requests_of(run_dir, records)
    emulated = _with_its_messages(_with_as_much_training(recipe, len(requests) + len(refused)), records, messages)

    def run(recipe: Recipe) -> Simulated:
        batches = stream(recipe.training, None, recipe.seed) if recipe.training else None
        work = Workload(RequestStream.of(requests), batches, ())
        simulated = simulate_workload(recipe, hardware, work, records.facts.t0_s)
        return dataclasses.replace(simulated, records=_with(simulated.records, refused))

    return records, best_split(emulated, run) if is_open(emulated) else run(emulated)


def _with_as_much_training(recipe: Recipe, received: int) -> Recipe:
    """The recipe with its share of training as a number, on stages that need neither text nor a model."""
    engine = recipe.engine.model_copy(update={"kind": "emulated"})
    training = recipe.training
    if training is not None:
        number = amount(received, training.share, training.micro_batches)
        training = training.model_copy(update={"share": None, "micro_batches": number})
    return recipe.model_copy(update={"engine": engine, "training": training})


def _with_its_messages(recipe: Recipe, records: Records, times: float) -> Recipe:
    """The recipe with so many times as long waits between passes as a real run had; a simulated one had those of its recipe."""
    between = summarise(records)["between_passes_ms"]["mean"]
    if between is None or records.facts.engine == "simulated":
        return recipe
    simulate = recipe.simulate.model_copy(update={"between_passes_ms": max(0.0, times * between)})
    return recipe.model_copy(update={"simulate": simulate})


def _with(records: RunRecords, refused: list[ServedTask]) -> RunRecords:
    return dataclasses.replace(records, served=refused + records.served)


def requests_of(run_dir: Path, records: Records) -> tuple[tuple[Request, ...], list[ServedTask]]:
    """In order of arrival, and what was too long for the model, which never came to the policy. Requests without an answer ask
    for as many tokens as the policy was told."""
    requests, refused = list[Request](), list[ServedTask]()
    unanswered: dict[int | None, int] = {}
    for task in records.tasks():
        if not isinstance(task, ServedTask):
            continue
        if task.number is None:
            refused.append(task)
            continue
        if task.outcome != "finished":
            unanswered[task.number] = len(requests)
        requests.append(Request(task.id, task.arrival, task.prompt_tokens, task.answer_tokens, service=task.service))
    for number, output in (_asked(run_dir, unanswered) if unanswered else {}).items():
        place = unanswered[number]
        requests[place] = structs.replace(requests[place], output_tokens=output)
    return tuple(sorted(requests, key=lambda request: request.arrival)), refused


def _asked(run_dir: Path, numbers: Iterable[int | None]) -> dict[int | None, int]:
    wanted = set(numbers)
    events = chain.from_iterable(map(read_events, record_directories(run_dir)))
    return {event.task: event.output for event in events if isinstance(event, RequestArrived) and event.task in wanted}
