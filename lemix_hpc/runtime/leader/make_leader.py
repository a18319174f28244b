"""Which leader a node has: ours forms batches for engines that only compute, vLLM's scheduler forms its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.profiling.hardware import load_hardware
from lemix_hpc.run_setup.in_flight import useful_in_flight
from lemix_hpc.run_setup.memory_limits import is_limited, longest_hold, offloads, room_of, rooms_of
from lemix_hpc.runtime.leader.batching_leader import Leader
from lemix_hpc.runtime.leader.memory_gate import NodeMemoryLimits
from lemix_hpc.runtime.transport.mailbox import Mailbox
from lemix_hpc.runtime.transport.rank_layout import Layout
from lemix_hpc.runtime.transport.run_clock import RunClock


class AnyLeader(Protocol):
    """What the ranks' loops need of a leader."""

    def turn(self) -> bool: ...

    def until_due(self) -> float: ...

    @property
    def finished(self) -> bool: ...

    @property
    def in_transit(self) -> bool: ...


def make_leader(
    recipe: Recipe,
    layout: Layout,
    node: int,
    mailbox: Mailbox,
    meeting: Path,
    clock: RunClock,
    wake: Callable[[], None],
    weight_version: int = 0,
) -> AnyLeader:
    """The leader of a node whose ranks share the directory `meeting`, and whose weights start at a version. `wake` ends this
    rank's sleep, from any thread."""
    temperature = recipe.serving.temperature if recipe.serving else 0.0
    engine = recipe.engine
    if not engine.has_scheduler:
        return Leader(
            layout,
            node,
            mailbox,
            clock,
            max_requests=engine.max_batch_requests,
            max_tokens=engine.max_batch_tokens,
            temperature=temperature,
            memory=_limits(recipe, node),
        )
    from lemix_hpc.engines.vllm.environment import prepare

    prepare(meeting)
    from lemix_hpc.engines.vllm.server import NodeServer
    from lemix_hpc.runtime.leader.vllm_leader import EngineLeader

    server = NodeServer(recipe, meeting, clock.now, wake, weight_version)
    return EngineLeader(layout, node, mailbox, server, clock, temperature=temperature, memory=_limits(recipe, node))


def _limits(recipe: Recipe, node: int) -> NodeMemoryLimits:
    training, policy = recipe.training, recipe.policy
    return NodeMemoryLimits(
        recipe.nodes.stages,
        rooms_of(recipe, load_hardware(recipe), node) if is_limited(recipe) and not recipe.engine.computes else (),
        lambda stage, takes: room_of(recipe, node, stage, takes),
        policy.memory.max_wait_s,
        offloads(recipe),
        max_hold=longest_hold(policy),
        gpipe=training is not None and training.release == "sync" and training.schedule == "gpipe",
        useful_in_flight=useful_in_flight(recipe),
    )


def engines_in(recipe: Recipe) -> int:
    """How many engines report that they are ready: one in each stage, and in each node one with a scheduler of its own."""
    nodes = recipe.nodes
    return nodes.count * (nodes.stages + recipe.engine.has_scheduler)
