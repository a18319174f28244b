"""The work of a run as reports take it in."""

from collections.abc import Iterable, Iterator

from lemix_hpc.records.schema import Span, Stretch
from lemix_hpc.records.stretches import stretches_of
from lemix_hpc.report.recent import in_order


def work(spans: Iterable[Span]) -> Iterator[Stretch]:
    """In the order of its starts."""
    return in_order(stretches_of(spans))
