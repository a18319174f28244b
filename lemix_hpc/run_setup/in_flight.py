"""How many micro-batches of a node are between the first stage's forward and its backward, at most."""

from __future__ import annotations

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.profiling.hardware import load_hardware
from lemix_hpc.run_setup.memory_limits import is_limited, micro_batch_tokens, rooms_of, trains

ENOUGH = 4
"""In flight for each stage where lengths differ: with more of them stages are no busier (docs/policy-study.md)."""


def useful_in_flight(recipe: Recipe) -> int:
    """How many keep stages busy, of those that may be in flight: one for each stage where all are equally long."""
    training = recipe.training
    return recipe.nodes.stages if training is None or training.lengths is None else planned_in_flight(recipe)


def planned_in_flight(recipe: Recipe) -> int:
    """What the recipe gives, or else what is worth its memory, and at least one for each stage.

    Micro-batches of equal length leave no gaps that others could fill. Where lengths differ it is as many as fit into the
    memory of every stage that trains, each as large as the largest. Raises UserError if that is less than one.
    """
    training, least = recipe.training, recipe.in_flight
    if training is None or training.in_flight is not None or training.lengths is None:
        return least
    most = ENOUGH * least
    if not is_limited(recipe) or recipe.policy.memory.mode == "ignore":
        return most
    hardware = load_hardware(recipe)
    nodes = [node for node in range(recipe.nodes.count) if trains(recipe, node)]
    rooms = [room for node in nodes for room in rooms_of(recipe, hardware, node) if room.activation_bytes > 0]
    fitting = min((room.limit // (micro_batch_tokens(recipe) * room.activation_bytes) for room in rooms), default=most)
    return max(least, min(most, fitting))
