"""The whole workload of a run, from its recipe."""

from __future__ import annotations

from dataclasses import dataclass

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.config.training_section import Training
from lemix_hpc.workload.api_lengths import context_of
from lemix_hpc.workload.held_out import HeldOut, HeldOutSamples
from lemix_hpc.workload.lines import BadLine
from lemix_hpc.workload.request_stream import RequestStream
from lemix_hpc.workload.requests import Loaded, load_requests
from lemix_hpc.workload.tokenizer import Tokenizer, load_tokenizer
from lemix_hpc.workload.training import MicroBatchStream, stream


@dataclass(frozen=True)
class Workload:
    """Requests, an endless stream of micro-batches, and a message for every line that was left out.

    `batches` is None if nothing is trained, or only samples that clients will send. `bad_calls`: invalid lines of a batch file
    whose lines go to vLLM as they are. `warnings`: what is most likely not meant. `held_out`: what the loss is taken on before
    and after training.
    """

    requests: RequestStream
    batches: MicroBatchStream | None
    left_out: tuple[str, ...]
    bad_calls: tuple[BadLine, ...] = ()
    warnings: tuple[str, ...] = ()
    held_out: HeldOutSamples | None = None

    @property
    def notices(self) -> tuple[str, ...]:
        """A line for each thing that a user is told before the run."""
        return (*(f"left out: {message}" for message in self.left_out), *(f"warning: {text}" for text in self.warnings))

    @property
    def lines_left_out(self) -> int:
        """How many so far: of large training data more may come during the run."""
        later = 0 if self.batches is None else self.batches.left_out - len(self.batches.malformed)
        return len(self.left_out) + later


def load_workload(recipe: Recipe) -> Workload:
    """Read all files of the recipe's serving and training sections.

    Engines that do not compute get lengths without tokens. Raises UserError for files that cannot be read or have no valid
    line, and for a window without requests.
    """
    tokenizer = load_tokenizer(recipe.model) if recipe.engine.computes else None
    serving, training = recipe.serving, recipe.training
    loaded = Loaded(RequestStream.of(()), ())
    if serving is not None and serving.source is not None:
        within = context_of(recipe) if recipe.engine.serves_http else None
        loaded = load_requests(serving, seed=recipe.seed, tokenizer=tokenizer, calls_within=within)
    only_posted = serving is not None and serving.http is not None and training is not None and training.data is None
    batches = None if training is None or only_posted else stream(training, tokenizer, recipe.seed)
    left_out = loaded.malformed + (batches.malformed if batches else ())
    bad_calls = loaded.bad_lines if loaded.requests.demand.calls else ()
    held_out = None if training is None or tokenizer is None else _held_out(recipe, training, tokenizer, batches)
    return Workload(loaded.requests, batches, left_out, bad_calls, (*loaded.warnings, *_no_losses(recipe)), held_out)


def _held_out(
    recipe: Recipe, training: Training, tokenizer: Tokenizer, batches: MicroBatchStream | None
) -> HeldOutSamples | None:
    """vLLM gives a token with each score, for which there must be room."""
    context = context_of(recipe) - 1 if recipe.engine.serves_http else training.sequence_length
    held = HeldOut(training) if batches is None or batches.held_out is None else batches.held_out
    return held.samples(None if batches is None else batches.first_window, tokenizer, context)


def _no_losses(recipe: Recipe) -> list[str]:
    if recipe.engine.computes or recipe.training is None or recipe.training.held_out is None:
        return []
    return [
        f"training.held_out: the {recipe.engine.kind} engine computes no losses, so none is taken on held-out samples"
    ]
