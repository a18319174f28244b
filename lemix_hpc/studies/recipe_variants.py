"""Recipes that differ in one thing: the policy, the load, the share of training, or the seed."""

from __future__ import annotations

from typing import Literal

from pydantic import ValidationError

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.policy_section import Policy
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.config.serving_section import GeneratedSource, Serving
from lemix_hpc.policy.placements import PLACEMENTS
from lemix_hpc.workload.requests import load_requests

Split = int | Literal["auto"] | None


def with_placement(recipe: Recipe, placement: str, split: Split = None) -> Recipe:
    """The recipe with another placement; `split`: of `separate`, by default the recipe's. Raises UserError where the other
    keys of the policy do not fit."""
    splits, nodes = PLACEMENTS[placement].splits, recipe.nodes.count
    training_nodes = (split or recipe.policy.training_nodes) if splits else None
    if splits and (nodes < 2 or (isinstance(training_nodes, int) and training_nodes >= nodes)):
        raise UserError(
            f"policy {placement}: at least one of {nodes} nodes must serve and one train; give more nodes, or another split"
        )
    keys = recipe.policy.model_dump() | {"placement": placement, "training_nodes": training_nodes}
    try:
        policy = Policy.model_validate(keys)
    except ValidationError as error:
        told = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"policy {placement}: {told}") from None
    return recipe.model_copy(update={"policy": policy})


def with_rate(recipe: Recipe, rate: float) -> Recipe:
    """The recipe with so many requests per second: of a generated source its `rate`, and a trace is scaled in time."""
    serving = _serving(recipe)
    if isinstance(serving.source, GeneratedSource):
        source = serving.source.model_copy(update={"rate": rate / serving.rate_scale})
        return _with_serving(recipe, serving.model_copy(update={"source": source}))
    return _with_serving(recipe, serving.model_copy(update={"rate_scale": serving.rate_scale * rate / rate_of(recipe)}))


def rate_of(recipe: Recipe) -> float:
    """Requests per second: the rate of a generated source, the mean of a trace. Raises UserError without requests."""
    serving = _serving(recipe)
    if isinstance(serving.source, GeneratedSource):
        return serving.source.rate * serving.rate_scale
    last, count = _last_arrival(recipe)
    return count / last


def with_fixed_requests(recipe: Recipe) -> Recipe:
    """The recipe with a number of requests instead of a duration, so that another rate moves the same ones in time."""
    serving = _serving(recipe)
    if not isinstance(serving.source, GeneratedSource) or serving.source.duration_s is None:
        return recipe
    _, count = _last_arrival(recipe)
    source = serving.source.model_copy(update={"requests": count, "duration_s": None})
    return _with_serving(recipe, serving.model_copy(update={"source": source}))


def with_share(recipe: Recipe, share: float) -> Recipe:
    """The recipe with so many training micro-batches among all tasks."""
    if recipe.training is None:
        raise UserError("training: the recipe has no training, so there is no share to set; add a `training` section")
    training = recipe.training.model_copy(update={"share": share, "micro_batches": None})
    return recipe.model_copy(update={"training": training})


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with other random draws."""
    return recipe.model_copy(update={"seed": seed})


def with_limit(recipe: Recipe, factor: float) -> Recipe:
    """The recipe with one limit on responses, in T0, which is then the one that the policy aims at."""
    slo = recipe.slo.model_copy(update={"factors": [factor], "response_ms": None})
    return recipe.model_copy(update={"slo": slo})


def _serving(recipe: Recipe) -> Serving:
    if recipe.serving is None:
        raise UserError("serving: the recipe serves no requests, so there is no rate to set; add a `serving` section")
    return recipe.serving


def _with_serving(recipe: Recipe, serving: Serving) -> Recipe:
    return recipe.model_copy(update={"serving": serving})


def _last_arrival(recipe: Recipe) -> tuple[float, int]:
    """When the last request comes, in seconds, and how many there are. Lengths alone matter here, so no tokenizer is read."""
    requests = load_requests(_serving(recipe), seed=recipe.seed, tokenizer=None).requests
    last = requests.demand.last_arrival
    if last <= 0.0:
        raise UserError("serving.source: all requests arrive at once, so they have no rate; give more of them")
    return last, len(requests)
