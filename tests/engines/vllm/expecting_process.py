"""The last of two stages of real vLLM, which is told of batches before their activations come: `STAGE DIRECTORY`.

Stage 0 is only there because vLLM's stages start together. It ends when its standard input does.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.meter import finish
from lemix_hpc.engines.model_sizes import describe
from lemix_hpc.engines.protocol import GroupGradient, MicroBatch, Payload, ServeBatch, ServeSequence
from lemix_hpc.engines.torch.partition import layer_ranges
from lemix_hpc.engines.torch.payloads import Wire
from lemix_hpc.engines.vllm.environment import prepare
from tests.runtime.conftest import SUMS

CPU = torch.device("cpu")
ROWS, LENGTH, HIDDEN = 2, 16, 128
SEQUENCES = [
    ServeSequence(0, 20, 0, False, list(range(20))),  # scored
    ServeSequence(1, 9, 0, True, list(range(40, 49))),
]


class Socket:
    """The engine process's side of a last stage."""

    def __init__(self) -> None:
        self.samples: deque[Any] = deque()
        self.answers: list[Any] = []

    def answer(self, output: Any) -> None:
        self.answers.append(output)

    def close(self) -> None:
        """Nothing is open."""


class Stage:
    """A stage as the runtime has it, its runner, and who plans its batches."""

    def __init__(self, recipe: Recipe, meeting: Path) -> None:
        from lemix_hpc.engines.vllm import build
        from lemix_hpc.engines.vllm.pass_thread import PassThread
        from lemix_hpc.engines.vllm.stage import VllmStage

        lone = build.build_lone_stage(recipe, stage=1, device="cpu", meeting=meeting)
        self._planner = lone._with_cache()
        self.socket = Socket()
        worker = lone._worker
        parts = build._training(recipe, worker, 1, layer_ranges(describe(recipe.model), 2), CPU)
        self.stage = VllmStage(self.socket, worker, parts, PassThread(lambda: None))  # type: ignore[arg-type]
        self.runner: Any = worker.worker.model_runner
        self._batches = 0

    def batch(self) -> ServeBatch:
        plan = self._planner.plan(SEQUENCES)
        self._batches += 1
        return ServeBatch(self._batches, SEQUENCES, plan=pickle.dumps(plan), version=0)

    def served(self, batch: ServeBatch, hidden: Payload) -> list[float]:
        """Log-likelihoods of the first request, and the next token of the second."""
        self.socket.samples.append(None)
        assert finish(self.stage.serve(batch, hidden)) is None
        output = self.socket.answers.pop()
        (scores,) = [scores for scores in output.prompt_logprobs_dict.values() if scores is not None]
        return [*scores.logprobs[:, 0].tolist(), *output.sampled_token_ids[1]]

    def names(self) -> list[str]:
        """The requests that the runner is prepared for."""
        return list(self.runner.input_batch.req_ids)

    def trained_step(self, number: int) -> None:
        """An optimizer step on made-up activations, which changes the weights that are served."""
        assert not torch.is_inference_mode_enabled()
        tokens = torch.randint(0, 257, (ROWS, LENGTH)).int().numpy().tobytes()
        micro_batch = MicroBatch(number, number, 0, 1, ROWS, LENGTH, tokens, tokens)
        finish(self.stage.forward(micro_batch, Wire(CPU).payload(torch.randn(ROWS, LENGTH, HIDDEN))))
        gradient = finish(self.stage.backward(number, None))
        assert gradient is not None and gradient.shape == (ROWS, LENGTH, HIDDEN)
        sealing = self.stage.seal(number, None)
        sealed = sealing if isinstance(sealing, GroupGradient) else finish(sealing)
        step = self.stage.prepare(number, sealed.square_norm**0.5, None)
        assert step is not None
        finish(step)
        finish(self.stage.publish(number))


def check_it_is_prepared_before_and_runs_on_the_weights_of_then(stage: Stage, hidden: Payload) -> None:
    for number in range(5):
        old = stage.served(stage.batch(), hidden)
        before = stage.names()
        batch = stage.batch()
        finish(stage.stage.expect(batch))
        assert not set(stage.names()) & set(before), "its own requests have taken the places of those before"
        assert stage.runner.execute_model_state is None, "nothing has run"
        stage.trained_step(number)
        new = stage.served(batch, hidden)
        assert new == stage.served(stage.batch(), hidden), "as if all had been done at once"
        assert new != old, "it ran on the weights that were published in between"


def check_updates_without_tokens(stage: Stage) -> None:
    """They have no activations to wait for, and no answer."""
    batch = stage.batch()
    plan = pickle.loads(batch.plan)
    over = replace(
        plan,
        scheduled_new_reqs=[],
        num_scheduled_tokens={},
        total_num_scheduled_tokens=0,
        finished_req_ids=set(stage.names()),
    )
    empty = ServeBatch(batch.id, [], plan=pickle.dumps(over), version=0)
    finish(stage.stage.expect(empty))
    assert finish(stage.stage.serve(empty, None)) is None
    assert stage.names() == []
    assert not stage.socket.answers


def check_what_a_preparation_raises_is_raised(stage: Stage) -> None:
    plan = pickle.loads(stage.batch().plan)
    plan.num_scheduled_tokens = {"nobody": 3}
    broken = ServeBatch(10_000, SEQUENCES, plan=pickle.dumps(plan), version=0)
    with pytest.raises(KeyError):
        finish(stage.stage.expect(broken))


def main(number: int, directory: Path) -> None:
    prepare()
    recipe = Recipe.model_validate(
        {
            "nodes": {"stages": 2},
            "model": {"path": str(directory / "model")},
            "engine": {"kind": "vllm", "device": "cpu"},
            "training": {"data": {"path": str(SUMS)}, "sequence_length": LENGTH, "learning_rate": 1e-3},
        }
    )
    if number == 0:
        from lemix_hpc.engines.vllm.build import build_lone_stage

        build_lone_stage(recipe, stage=0, device="cpu", meeting=directory)
        sys.stdin.read()
        return
    torch.manual_seed(1)
    stage = Stage(recipe, directory)
    hidden = Wire(CPU).payload(torch.randn(2, 29, HIDDEN))
    check_it_is_prepared_before_and_runs_on_the_weights_of_then(stage, hidden)
    check_updates_without_tokens(stage)
    check_what_a_preparation_raises_is_raised(stage)
    finish(stage.stage.expect(stage.batch()))
    stage.stage.close()  # while a pass rests
    print("all hold", flush=True)
    os._exit(0)  # torch's group would wait for stage 0


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
