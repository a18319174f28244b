"""The requests of a run, from the recipe's `serving` section."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

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
from lemix_hpc.workload.tasks import Request
from lemix_hpc.workload.thin_window import Extent, thin_window
from lemix_hpc.workload.tokenizer import Tokenizer
from lemix_hpc.workload.traces import TraceRow, read_azure, read_burstgpt, read_mooncake

# Random prompts are cut out of one stream of this many tokens, which keeps a long trace small in memory.
_RANDOM_STREAM = 1 << 18
MOST_PROMPT_TOKENS = 500_000_000
"""Of all requests together, where they are tokens and not only lengths: 4 GB."""


@dataclass(frozen=True)
class Loaded:
    """Requests in order of arrival (later turns of conversations in the order of their source), and what was left out.

    `malformed` has one message per bad line: file, line number, what is wrong. `failed` counts the requests that the
    trace itself records as failed (BurstGPT). `bad_lines` has the bad lines themselves. `warnings`: what is most likely not
    meant.
    """

    requests: tuple[Request, ...]
    malformed: tuple[str, ...]
    failed: int = 0
    bad_lines: tuple[BadLine, ...] = ()
    warnings: tuple[str, ...] = ()


def load_requests(
    serving: Serving, *, seed: int, tokenizer: Tokenizer | None, calls_within: int | None = None
) -> Loaded:
    """All requests of a run. Without a tokenizer only their lengths matter, and `tokens` is empty.

    `calls_within`: lines of a batch file are calls for servers whose model takes so many tokens at once; None: they are
    prompts. The same recipe, seed and files give the same requests. Raises UserError for files that cannot be read or have no
    valid request, for an empty window, and for caps that leave nothing to do; ValueError if `serving` has no source.
    """
    source = serving.source
    if source is None:
        raise ValueError("serving has no source to load requests from")
    _check_caps(serving, source.kind)
    # One generator per purpose, so that a change of one draw leaves the others as they were.
    arrival_seed, length_seed, prompt_seed, think_seed, class_seed = np.random.SeedSequence(seed).spawn(5)
    findings = Findings()
    rows: Iterable[TraceRow]
    if isinstance(source, GeneratedSource):
        rows = _generated(source, np.random.default_rng(arrival_seed), np.random.default_rng(length_seed))
        # The process starts at 0, before its first arrival.
        name, origin = f"serving.source ({source.kind})", 0.0
    else:
        rows = _traced(source, serving, tokenizer, findings, calls_within)
        name, origin = str(source.path), np.inf
    whole = Extent()
    chosen = replayed(whole.of(rows), serving.window, serving.rate_scale, name, origin=origin)
    thin = None if isinstance(source, GeneratedSource) else thin_window(name, whole, serving, chosen)
    rows = [row if row.call is not None else _capped(row, serving) for row in chosen]
    if tokenizer is not None and not any(row.call for row in rows):
        _check_tokens(sum(row.prompt_tokens for row in rows))
        brings_text = source.kind == "openai-batch"
        rows = list(_filled(rows, serving, brings_text, tokenizer, np.random.default_rng(prompt_seed), findings))
    classes = _classes(serving, len(rows), np.random.default_rng(class_seed))
    requests = tuple(
        Request(
            row.id or f"r{number}",
            row.time,
            row.prompt_tokens,
            row.output_tokens,
            row.tokens,
            call=row.call,
            service=service,
        )
        for number, (row, service) in enumerate(zip(rows, classes, strict=True))
    )
    if serving.conversations is not None:
        thinking = np.random.default_rng(think_seed)
        requests = in_conversations(requests, serving.conversations, serving.max_prompt_tokens, thinking)
    warnings = () if thin is None else (thin,)
    return Loaded(requests, tuple(findings.malformed), findings.failed, tuple(findings.bad_lines), warnings)


def replayed(
    rows: Iterable[TraceRow], window: Window, rate_scale: float, name: str, *, origin: float = np.inf
) -> list[TraceRow]:
    """The rows of the window, sorted by time, with times in seconds of the run.

    Time 0 of the trace is its earliest row, or `origin` if that is earlier. The window is [start_s, end_s) of that clock, and
    its start is time 0 of the run; all times are divided by `rate_scale`. Equal times keep the file's order. `name` is the
    source in the UserError that is raised if no row is left.
    """
    first, last = origin, -np.inf
    candidates: list[TraceRow] = []
    for row in rows:
        first, last = min(first, row.time), max(last, row.time)
        # `first` only goes down, so a row beyond the end now stays beyond it: a huge trace needs no huge memory.
        if window.end_s is None or row.time - first < window.end_s:
            candidates.append(row)
    inside = [
        row
        for row in candidates
        if row.time - first >= window.start_s and (window.end_s is None or row.time - first < window.end_s)
    ]
    if not inside:
        has = f"its {last - first:.6g} s have requests elsewhere only" if candidates else "it has no request at all"
        end = "the end" if window.end_s is None else f"{window.end_s:.6g} s"
        raise UserError(
            f"{name}: no request between {window.start_s:.6g} s and {end}; {has}. "
            "Widen serving.window, or lengthen the generated workload."
        )
    inside.sort(key=lambda row: row.time)
    return [replace(row, time=(row.time - first - window.start_s) / rate_scale) for row in inside[: window.limit]]


def _check_tokens(count: int) -> None:
    """Raises UserError for prompts that do not fit into memory."""
    if count > MOST_PROMPT_TOKENS:
        raise UserError(
            f"serving: the prompts have {count:.3g} tokens together, and a run keeps at most {MOST_PROMPT_TOKENS:.3g} of them "
            "in memory. Set serving.max_prompt_tokens, or serving.window.limit."
        )


def _classes(serving: Serving, count: int, rng: np.random.Generator) -> list[ServiceClass]:
    """The class of each of so many requests."""
    share = serving.batch_requests
    if share is None:
        share = 1.0 if serving.source is not None and serving.source.kind == "openai-batch" else 0.0
    return ["batch" if batch else "interactive" for batch in (rng.random(count) < share).tolist()]


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


def _generated(
    source: GeneratedSource, arrival_rng: np.random.Generator, length_rng: np.random.Generator
) -> Iterator[TraceRow]:
    times = arrival_times(source, arrival_rng)
    lengths = sample_lengths(source.lengths, len(times), length_rng)
    for time, (prompt, output) in zip(times.tolist(), lengths.tolist(), strict=True):
        yield TraceRow(time, prompt, output)


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


def _capped(row: TraceRow, serving: Serving) -> TraceRow:
    """Lengths within the recipe's caps and at least what the mode needs."""
    scoring = serving.mode == "score"
    prompt = min(row.prompt_tokens, serving.max_prompt_tokens or row.prompt_tokens)
    output = min(row.output_tokens, serving.max_new_tokens or row.output_tokens)
    return replace(
        row,
        prompt_tokens=max(prompt, 2 if scoring else 1),
        output_tokens=0 if scoring else max(output, 1),
    )


def _filled(
    rows: list[TraceRow],
    serving: Serving,
    brings_text: bool,
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    findings: Findings,
) -> Iterator[TraceRow]:
    """Rows with as many tokens as their `prompt_tokens`."""
    if brings_text:
        for row in rows:
            # A prompt too short for the mode is preceded by the token that stands between texts.
            missing = max(row.prompt_tokens - len(row.tokens), 0)
            yield replace(row, tokens=((tokenizer.eos,) * missing + row.tokens)[: row.prompt_tokens])
        return
    if serving.prompts is None:
        stream = rng.integers(tokenizer.vocab_size, size=_RANDOM_STREAM).tolist()
    else:
        stream = _text_stream(serving.prompts, tokenizer, findings)
    starts = rng.integers(len(stream), size=len(rows)).tolist()
    for row, start in zip(rows, starts, strict=True):
        yield replace(row, tokens=_cut(stream, start, row.prompt_tokens))


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
