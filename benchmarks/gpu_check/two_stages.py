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

CLOSE = {"float32": 1e-3, "bfloat16": 5e-3}
"""Largest relative difference of a loss or a score."""


def check(device: str, report: Report) -> None:
    out = Path(os.environ["GPU_CHECK_OUT"]) / "runs"
    kind = "cuda" if on_gpu(device) else "cpu"
    known = out / "cpu-float32"
    if not (known / "tasks.jsonl").exists():
        small_run.finish(small_run.start(small_run.recipe("cpu", "float32"), out), known)
    dtypes = list(CLOSE) if on_gpu(device) else ["bfloat16"]
    started = {dtype: small_run.start(small_run.recipe(kind, dtype), out) for dtype in dtypes}
    replayed = replay(load_recipe(known / "recipe.yaml"), wanted=small_run.scores(known))
    compare_scores("cpu", 1e-4, small_run.scores(known), replayed.scores, report)
    for dtype, process in started.items():
        run = out / f"{kind}-{dtype}"
        small_run.finish(process, run)
        compare_run(dtype, CLOSE[dtype], run, known, report)


def compare_run(name: str, close: float, run: Path, known: Path, report: Report) -> None:
    """A synchronous run that serves, with the run on the CPU. `close`: largest relative difference."""
    compare_losses(name, close, small_run.losses(known), small_run.losses(run), report)
    misplaced = small_run.misplaced_forwards(run)
    report.figure(f"{name}_forwards_under_other_weights", misplaced)
    report.expect(not misplaced, f"{name}: {len(misplaced)} forwards ran before or after another step than they should")
    mixed = small_run.mixed_batches(run)
    report.figure(f"{name}_mixed_batches", mixed)
    report.expect(mixed == 0, f"{name}: {mixed} batches saw two weight versions")
    report.figure(f"{name}_weights_served_as", small_run.last_checkpoint(run).manifest.dtype)
    apart = furthest(small_run.kept_weights(known), small_run.kept_weights(run))
    report.figure(f"{name}_weights_furthest_from_the_cpus", apart)
    served = small_run.scores(run)
    report.figure(f"{name}_versions_served", len({version for _, version in served}))
    report.expect(len(served) == small_run.REQUESTS, f"{name}: {len(served)} requests were answered")
    compare_scores(name, close, served, replay(load_recipe(known / "recipe.yaml"), wanted=served).scores, report)


def compare_losses(name: str, close: float, known: list[float], found: list[float], report: Report) -> None:
    differences = [abs(a - b) / a for a, b in zip(known, found, strict=True)]
    report.figure(f"{name}_losses", found)
    report.figure(f"{name}_loss_differences", differences)
    worst = max(differences)
    first = next((n for n, difference in enumerate(differences) if difference >= close), None)
    report.expect(worst < close, f"{name}: a loss differs by {worst:.2g} from the CPU's, first micro-batch {first}")


def furthest(known: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> dict[str, list[float]]:
    """Of the weights after the last step: for the tensors that differ most, by how much and where first of all."""
    rows = {}
    for name, weight in known.items():
        apart = (weight.float() - found[name].float()).abs().flatten()
        rows[name] = [float(apart.max()), float(apart.mean()), int(apart.argmax())]
    return dict(sorted(rows.items(), key=lambda row: -row[1][0])[:5])


def compare_scores(
    name: str,
    close: float,
    served: Mapping[tuple[str, int], float],
    known: Mapping[tuple[str, int], float],
    report: Report,
) -> None:
    apart = {key: abs(score - known[key]) / max(abs(known[key]), 1.0) for key, score in served.items()}
    worst = max(apart.values())
    by_version: dict[int, float] = {}
    for (_, version), difference in apart.items():
        by_version[version] = max(by_version.get(version, 0.0), difference)
    report.figure(f"{name}_score_differences_by_version", dict(sorted(by_version.items())))
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
            sealed = done(stage.seal(group.number, None))
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
