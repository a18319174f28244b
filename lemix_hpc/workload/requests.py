"""The requests of a run, from the recipe's `serving` section."""

from __future__ import annotations

import copy
import functools
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.serving_section import GeneratedSource, Serving, TraceSource, Window
from lemix_hpc.config.workload_section import TextData
from lemix_hpc.policy.classes import ServiceClass
from lemix_hpc.workload.arrivals import arrival_times
from lemix_hpc.workload.batch_calls import read_batch_calls
from lemix_hpc.workload.conversations import in_conversations
from lemix_hpc.workload.data_set import read_all
from lemix_hpc.workload.labels import labelled
from lemix_hpc.workload.lengths import sample_lengths
from lemix_hpc.workload.lines import BadLine, Findings
from lemix_hpc.workload.openai_batch import DEFAULT_OUTPUT_TOKENS, read_openai_batch
from lemix_hpc.workload.ordered_rows import OrderedRows
from lemix_hpc.workload.request_stream import RequestStream
from lemix_hpc.workload.tasks import Request
from lemix_hpc.workload.thin_window import Extent, thin_window
from lemix_hpc.workload.tokenizer import Tokenizer
from lemix_hpc.workload.traces import TraceRow, read_azure, read_burstgpt, read_mooncake

# Random prompts are cut out of one stream of this many tokens.
_RANDOM_STREAM = 1 << 18
_BLOCK = 1024
"""Values that are drawn at once: as many as one would draw one by one."""


@dataclass(frozen=True)
class Loaded:
    """Requests, and what was left out.

    `malformed` has one message per bad line: file, line number, what is wrong. `failed` counts the requests that the
    trace itself records as failed (BurstGPT). `bad_lines` has the bad lines themselves. `warnings`: what is most likely not
    meant.
    """

    requests: RequestStream
    malformed: tuple[str, ...]
    failed: int = 0
    bad_lines: tuple[BadLine, ...] = ()
    warnings: tuple[str, ...] = ()


def load_requests(
    serving: Serving, *, seed: int, tokenizer: Tokenizer | None, calls_within: int | None = None
) -> Loaded:
    """All requests of a run. Without a tokenizer only their lengths matter, and `tokens` is empty.

    `calls_within`: lines of a batch file are calls for servers whose model takes so many tokens at once; None: they are
    prompts. The same recipe, seed and files give the same requests. Files are read here, and never again. Raises UserError for
    files that cannot be read or have no valid request, for an empty window, and for caps that leave nothing to do; ValueError
    if `serving` has no source.
    """
    source = serving.source
    if source is None:
        raise ValueError("serving has no source to load requests from")
    _check_caps(serving, source.kind)
    findings, whole = Findings(), Extent()
    # One generator per purpose, so that a change of one draw leaves the others as they were.
    seeds = np.random.SeedSequence(seed).spawn(5)
    rows: Iterable[TraceRow]
    if isinstance(source, GeneratedSource):
        rows = _Generated(source, seeds[0], seeds[1])
        # The process starts at 0, before its first arrival.
        name, origin = f"serving.source ({source.kind})", 0.0
    else:
        rows = _ordered(source, whole.of(_traced(source, serving, tokenizer, findings, calls_within)))
        name, origin = str(source.path), whole.first
    plan = _Plan(serving, rows, origin, seeds)
    if tokenizer is not None:
        plan.text = _text(serving, source.kind, tokenizer, np.random.default_rng(seeds[2]), findings)
    requests = RequestStream(plan.requests)
    if not requests.demand.count:
        raise _empty(serving.window, name, whole if isinstance(rows, OrderedRows) else Extent.over(rows))
    thin = None if isinstance(source, GeneratedSource) else thin_window(name, whole, serving, requests.demand)
    warnings = () if thin is None else (thin,)
    return Loaded(requests, tuple(findings.malformed), findings.failed, tuple(findings.bad_lines), warnings)


def _ordered(source: TraceSource, rows: Iterable[TraceRow]) -> OrderedRows:
    try:
        return OrderedRows(rows)
    except OSError as error:
        raise UserError(
            f"{source.path}: its requests cannot be kept in the temporary directory {tempfile.gettempdir()}: "
            f"{error.strerror}. Set TMPDIR to one with more room."
        ) from error


@dataclass
class _Plan:
    """How requests are made from rows in order of time, whose clock begins at `origin`, with draws from `seeds`. `text`: what
    gives them their tokens, if they have any."""

    serving: Serving
    rows: Iterable[TraceRow]
    origin: float
    seeds: list[np.random.SeedSequence]
    text: _Text | None = None

    def requests(self, start: int, filled: bool) -> Iterator[Request]:
        """From a place on."""
        serving, talk = self.serving, self.serving.conversations
        first = start if talk is None else start - start % talk.turns
        text = self.text if filled else None
        rows = within(self.rows, serving.window, self.origin)
        classes = _classes(serving, np.random.default_rng(self.seeds[4]))
        cuts = itertools.repeat(0) if text is None else text.cuts()
        drawn = islice(zip(itertools.count(), rows, classes, cuts, strict=False), first, None)
        requests = itertools.starmap(functools.partial(self._request, text), drawn)
        if talk is None:
            return requests
        think = np.random.default_rng(self.seeds[3])
        thinking = islice(_draws(lambda count: think.exponential(talk.think_s, size=count)), first, None)
        return islice(in_conversations(requests, talk, serving.max_prompt_tokens, thinking), start - first, None)

    def _request(self, text: _Text | None, place: int, row: TraceRow, batch: bool, cut: int) -> Request:
        prompt, output = row.prompt_tokens, row.output_tokens
        if row.call is None:
            prompt, output = _capped(prompt, output, self.serving)
        tokens = () if text is None or row.call is not None else text.tokens(row, prompt, cut)
        arrival = (row.time - self.origin - self.serving.window.start_s) / self.serving.rate_scale
        service: ServiceClass = "batch" if batch else "interactive"
        id = row.id or f"r{place}"
        return Request(id, arrival, prompt, output, tokens, call=row.call, service=service, place=place)


def within(rows: Iterable[TraceRow], window: Window, origin: float) -> Iterator[TraceRow]:
    """The rows of the window [start_s, end_s) of a clock that begins at `origin`, of rows in order of time."""
    if window.end_s is not None:
        end = window.end_s
        rows = itertools.takewhile(lambda row: row.time - origin < end, rows)
    return islice(itertools.dropwhile(lambda row: row.time - origin < window.start_s, rows), window.limit)


def _empty(window: Window, name: str, whole: Extent) -> UserError:
    has = f"its {whole.span:.6g} s have requests elsewhere only" if whole.count else "it has no request at all"
    end = "the end" if window.end_s is None else f"{window.end_s:.6g} s"
    return UserError(
        f"{name}: no request between {window.start_s:.6g} s and {end}; {has}. "
        "Widen serving.window, or lengthen the generated workload."
    )


def _classes(serving: Serving, rng: np.random.Generator) -> Iterator[bool]:
    """Of each request, whether it is of class batch."""
    share = serving.batch_requests
    if share is None:
        share = 1.0 if serving.source is not None and serving.source.kind == "openai-batch" else 0.0
    return _draws(lambda count: rng.random(count) < share)


def _draws(draw: Callable[[int], NDArray[Any]]) -> Iterator[Any]:
    """One value after the other, without end."""
    while True:
        yield from draw(_BLOCK).tolist()


def _check_caps(serving: Serving, kind: str) -> None:
    if serving.mode == "score" and serving.max_prompt_tokens == 1:
        raise UserError(
            "serving.max_prompt_tokens is 1, but scoring needs 2: the first token of a prompt has nothing before it to be "
            "predicted from. Raise it, or set serving.mode to generate."
        )
    if serving.prompts is not None and kind == "openai-batch":
        raise UserError(
            "serving.prompts is not used with an openai-batch source, whose requests bring their own text. Remove it."
        )


class _Generated:
    """Rows of a generated workload, drawn anew each time."""

    def __init__(
        self, source: GeneratedSource, arrivals: np.random.SeedSequence, lengths: np.random.SeedSequence
    ) -> None:
        self._source = source
        self._arrivals = arrivals
        self._lengths = lengths

    def __iter__(self) -> Iterator[TraceRow]:
        rng = np.random.default_rng(self._lengths)
        for times in arrival_times(self._source, np.random.default_rng(self._arrivals)):
            lengths = sample_lengths(self._source.lengths, len(times), rng)
            yield from map(TraceRow, times.tolist(), lengths[:, 0].tolist(), lengths[:, 1].tolist())


def _traced(
    source: TraceSource,
    serving: Serving,
    tokenizer: Tokenizer | None,
    findings: Findings,
    calls_within: int | None,
) -> Iterator[TraceRow]:
    match source.kind:
        case "azure":
            return read_azure(source.path, findings)
        case "mooncake":
            return read_mooncake(source.path, findings)
        case "burstgpt":
            return read_burstgpt(source.path, findings)
        case "openai-batch" if calls_within is not None and tokenizer is not None:
            return read_batch_calls(source.path, findings, tokenizer, calls_within)
        case "openai-batch":
            return read_openai_batch(
                source.path,
                findings,
                tokenizer=tokenizer,
                default_output_tokens=serving.max_new_tokens or DEFAULT_OUTPUT_TOKENS,
                answer=serving.mode == "generate",
            )


def _capped(prompt: int, output: int, serving: Serving) -> tuple[int, int]:
    """Lengths within the recipe's caps and at least what the mode needs."""
    scoring = serving.mode == "score"
    prompt = max(min(prompt, serving.max_prompt_tokens or prompt), 2 if scoring else 1)
    return prompt, 0 if scoring else max(min(output, serving.max_new_tokens or output), 1)


class _Text(Protocol):
    """Gives prompts as many tokens as they are long."""

    def cuts(self) -> Iterator[int]:
        """Where the prompts are cut out, one after the other, without end."""

    def tokens(self, row: TraceRow, length: int, cut: int) -> tuple[int, ...]:
        """Of a row's prompt."""


def _text(serving: Serving, kind: str, tokenizer: Tokenizer, rng: np.random.Generator, findings: Findings) -> _Text:
    if kind == "openai-batch":
        return _OwnText(tokenizer.eos)
    if serving.prompts is None:
        return _OneText(rng.integers(tokenizer.vocab_size, size=_RANDOM_STREAM).tolist(), rng)
    return _OneText(_text_stream(serving.prompts, tokenizer, findings), rng)


@dataclass(frozen=True)
class _OwnText:
    """Of the rows themselves. A prompt too short for the mode is preceded by the token that stands between texts."""

    eos: int

    def cuts(self) -> Iterator[int]:
        return itertools.repeat(0)

    def tokens(self, row: TraceRow, length: int, cut: int) -> tuple[int, ...]:  # noqa: ARG002  nothing is cut out
        return ((self.eos,) * max(length - len(row.tokens), 0) + row.tokens)[:length]


@dataclass(frozen=True)
class _OneText:
    """All prompts are cut out of one stream of tokens, from where `rng` says."""

    stream: list[int]
    rng: np.random.Generator

    def cuts(self) -> Iterator[int]:
        rng = copy.deepcopy(self.rng)
        return _draws(lambda count: rng.integers(len(self.stream), size=count))

    def tokens(self, row: TraceRow, length: int, cut: int) -> tuple[int, ...]:  # noqa: ARG002  rows have none
        return _cut(self.stream, cut, length)


def _text_stream(prompts: TextData, tokenizer: Tokenizer, findings: Findings) -> list[int]:
    """All documents one after the other, each closed by the end-of-text token, a conversation as its template ends it."""
    stream: list[int] = []
    window = read_all(prompts)
    findings.malformed += window.malformed
    refused = ""
    for index in range(len(window)):
        try:
            stream += labelled(window.document(index), tokenizer)[0].tolist()
        except ValueError as error:
            refused = refused or f"{window.place(index)}: {error}"
            findings.malformed.append(f"{window.place(index)}: {error}")
    if not stream:
        raise UserError(f"{prompts.where}: none of its conversations can be a prompt. The first: {refused}.")
    return stream


def _cut(stream: list[int], start: int, length: int) -> tuple[int, ...]:
    """`length` tokens from `start` on, beginning again at the stream's end as often as needed."""
    turns = (start + length) // len(stream)
    if turns == 0:
        return tuple(stream[start : start + length])
    end = start + length - turns * len(stream)
    return (*stream[start:], *(stream * (turns - 1)), *stream[:end])
