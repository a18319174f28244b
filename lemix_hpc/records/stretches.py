"""Work on stages, one record for each task or one for all of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from lemix_hpc.records.schema import BatchWork, Span, Stretch


def batch_work(
    node: int, starts: Sequence[float], ends: Sequence[float], version: int, batch: int, ids: Sequence[str]
) -> BatchWork:
    """What all stages have done for these tasks."""
    task, tasks = ("", tuple(ids)) if len(ids) > 1 else (ids[0] if ids else "", ())
    return BatchWork(node, tuple(starts), tuple(ends), version, batch, task, tasks)


def of_stages(work: BatchWork) -> Iterator[Stretch]:
    """What each stage has done for a batch."""
    for stage, (start, end) in enumerate(zip(work.starts, work.ends, strict=True)):
        yield Stretch(work.node, stage, "serve", start, end, work.version, work.batch, work.task, work.tasks)


def stretches_decoder() -> Callable[[bytes], Iterable[Stretch]]:
    """Decodes a line of `spans.jsonl`: one stretch, or those of all stages."""
    of_one, of_batch = msgspec.json.Decoder(Stretch), msgspec.json.Decoder(BatchWork)

    def decode(line: bytes) -> Iterable[Stretch]:
        return of_stages(of_batch.decode(line)) if b'"starts":' in line else (of_one.decode(line),)

    return decode


def with_members(stretch: Stretch, ids: Sequence[str]) -> Stretch:
    """The same work, for these tasks."""
    if len(ids) > 1:
        return msgspec.structs.replace(stretch, task="", tasks=tuple(ids))
    return msgspec.structs.replace(stretch, task=ids[0] if ids else "", tasks=())


def spans_of(stretch: Stretch) -> Iterator[Span]:
    """A span for each task; one that names none if there are none."""
    for task in stretch.members or ("",):
        yield Span(
            stretch.node,
            stretch.stage,
            task,
            stretch.kind,
            stretch.start,
            stretch.end,
            stretch.version,
            stretch.batch,
        )


def stretches_of(spans: Iterable[Span]) -> Iterator[Stretch]:
    """What the spans of a run were before each task had its own."""
    return merged(
        Stretch(span.node, span.stage, span.kind, span.start, span.end, span.version, span.batch, span.task)
        for span in spans
    )


def merged(stretches: Iterable[Stretch]) -> Iterator[Stretch]:
    """Those of one batch on one stage, one behind the other, become one; earlier versions wrote one for each request."""
    last: Stretch | None = None
    ids: list[str] = []
    for each in stretches:
        if last is not None and _same_work(last, each):
            ids += each.members
            continue
        if last is not None:
            yield _joined(last, ids)
        last, ids = each, list(each.members)
    if last is not None:
        yield _joined(last, ids)


def _joined(stretch: Stretch, ids: list[str]) -> Stretch:
    return stretch if len(ids) == len(stretch.members) else with_members(stretch, ids)


def _same_work(one: Stretch, other: Stretch) -> bool:
    return (
        one.kind == other.kind == "serve"
        and one.batch == other.batch
        and (one.node, one.stage, one.start, one.end) == (other.node, other.stage, other.start, other.end)
        and one.version == other.version
    )
