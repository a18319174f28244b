"""Everything that a run is to do, from its recipe."""

from __future__ import annotations

from dataclasses import dataclass

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.workload.requests import load_requests
from lemix_hpc.workload.tasks import Request
from lemix_hpc.workload.tokenizer import load_tokenizer
from lemix_hpc.workload.training import MicroBatchStream, stream


@dataclass(frozen=True)
class Workload:
    """Requests in order of arrival, micro-batches without end, and a message for every line that was left out."""

    requests: tuple[Request, ...]
    batches: MicroBatchStream | None
    left_out: tuple[str, ...]


def load_workload(recipe: Recipe) -> Workload:
    """Read all files of the recipe's serving and training sections.

    Engines that do not compute get lengths without tokens. Raises UserError for files that hold nothing valid.
    """
    tokenizer = load_tokenizer(recipe.model) if recipe.engine.kind != "emulated" else None
    serving = recipe.serving
    has_source = serving is not None and serving.source is not None
    loaded = load_requests(serving, seed=recipe.seed, tokenizer=tokenizer) if serving and has_source else None
    batches = stream(recipe.training, tokenizer, recipe.seed) if recipe.training else None
    left_out = (loaded.malformed if loaded else ()) + (batches.malformed if batches else ())
    return Workload(loaded.requests if loaded else (), batches, left_out)
