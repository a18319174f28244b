"""Two stages on one device serve and train: losses and scores as on the CPU, and no batch of two weight versions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.gpu_check import small_run
from benchmarks.gpu_check.report import Report
from benchmarks.gpu_check.shapes import on_gpu
from lemix_hpc.config.load import load_recipe
from lemix_hpc.config.recipe import Nodes, Recipe
from lemix_hpc.engines.protocol import ServeBatch, ServeSequence, Work
from lemix_hpc.engines.torch.build import build_stage
from lemix_hpc.run_setup.training_feed import TrainingFeed
from lemix_hpc.workload.load import load_workload

CLOSE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Largest relative difference of a loss or a score."""


def check(device: str, report: Report) -> None:
    out = Path(os.environ["GPU_CHECK_OUT"]) / "runs"
    kind = "cuda" if on_gpu(device) else "cpu"
    known = out / "cpu-float32"
    if not (known / "tasks.jsonl").exists():
        small_run.finish(small_run.start("cpu", "float32", out), known)
    dtypes = list(CLOSE) if on_gpu(device) else ["bfloat16"]
    started = {dtype: small_run.start(kind, dtype, out) for dtype in dtypes}
    replayed = replay(load_recipe(known / "recipe.yaml"), wanted=small_run.scores(known))
    compare_scores("cpu", 1e-4, small_run.scores(known), replayed.scores, report)
    for dtype, process in started.items():
        run = out / f"{kind}-{dtype}"
        small_run.finish(process, run)
        known_losses, found = small_run.losses(known), small_run.losses(run)
        worst = max(abs(a - b) / a for a, b in zip(known_losses, found, strict=True))
        report.figure(f"{dtype}_losses_first_last", [found[0], found[-1]])
        report.figure(f"{dtype}_worst_loss_difference", worst)
        report.expect(worst < CLOSE[dtype], f"{dtype}: a loss differs by {worst:.2g} from the CPU's")
        mixed = small_run.mixed_batches(run)
        report.figure(f"{dtype}_mixed_batches", mixed)
        report.expect(mixed == 0, f"{dtype}: {mixed} batches saw two weight versions")
        served = small_run.scores(run)
        report.expect(len(served) == small_run.REQUESTS, f"{dtype}: {len(served)} requests were answered")
        compare_scores(
            dtype, CLOSE[dtype], served, replay(load_recipe(known / "recipe.yaml"), wanted=served).scores, report
        )


def compare_scores(
    name: str,
    close: float,
    served: Mapping[tuple[str, int], float],
    known: Mapping[tuple[str, int], float],
    report: Report,
) -> None:
    worst = max(abs(score - known[key]) / max(abs(known[key]), 1.0) for key, score in served.items())
    report.figure(f"{name}_weight_versions_served", len({version for _, version in served}))
    report.figure(f"{name}_worst_score_difference", worst)
    report.expect(worst < close, f"{name}: a score differs by {worst:.2g} from that of the weights that it names")


class replay:  # noqa: N801  a function that returns two things
    """Train again in one process on the CPU, and score each wanted request under the version that it names."""

    def __init__(self, recipe: Recipe, wanted: Mapping[tuple[str, int], float]) -> None:
        torch.set_num_threads(1)
        workload = load_workload(recipe)
        whole = recipe.model_copy(update={"nodes": Nodes(stages=1)})
        stage = build_stage(whole, stage=0, device="cpu")
        training = recipe.training
        assert training is not None
        numbers = iter(range(10**9))
        feed = TrainingFeed(
            workload.batches,
            per_group=training.micro_batches_per_step,
            total=training.micro_batches,
            number=lambda: next(numbers),
        )
        prompts = {request.id: list(request.tokens) for request in workload.requests}
        self.scores: dict[tuple[str, int], float] = {}
        version = 0
        while True:
            for request, named in wanted:
                if named == version:
                    tokens = prompts[request]
                    batch = ServeBatch(0, [ServeSequence(0, len(tokens), 0, False, tokens)])
                    [result] = done(stage.serve(batch, None))
                    self.scores[request, version] = result.nll
            group = feed.next_group()
            if group is None:
                break
            for micro_batch in group.micro_batches:
                done(stage.forward(micro_batch, None))
                done(stage.backward(micro_batch.id, None))
            sealed = stage.seal(group.number, None)
            done(stage.prepare(group.number, sealed.square_norm**0.5, None))
            done(stage.publish(group.number))
            version += 1
        stage.close()


def done(work: Work):  # type: ignore[type-arg, no-untyped-def]
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value
