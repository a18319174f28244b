"""Weights on their way from a training node to the same stage of serving nodes (policy `separate`)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lemix_hpc.engines.protocol import Payload, StageEngine
from lemix_hpc.runtime.stage.links import StageLinks
from lemix_hpc.runtime.transport.messages import WeightsPart


@dataclass(slots=True)
class _Parts:
    count: int
    parts: dict[int, Payload] = field(default_factory=dict)


class WeightCopies:
    """Weight versions that arrive part by part."""

    def __init__(self) -> None:
        self._versions: dict[int, _Parts] = {}

    def add(self, part: WeightsPart, payload: Payload | None) -> None:
        version = self._versions.setdefault(part.version, _Parts(part.count))
        if payload is not None:
            version.parts[part.index] = payload

    def complete(self, version: int) -> bool:
        parts = self._versions.get(version)
        return parts is not None and len(parts.parts) == parts.count

    def take(self, version: int) -> list[Payload]:
        """The tensors of a complete version, in order; it and all older ones are dropped."""
        parts = self._versions[version].parts
        self._versions = {v: p for v, p in self._versions.items() if v > version}
        return [parts[index] for index in range(len(parts))]


def send_copy(engine: StageEngine, links: StageLinks, version: int) -> None:
    """Send this stage's weights to all nodes that get them."""
    nodes = links.place.copy_to
    weights = [_snapshot(tensor) for tensor in engine.read_weights()] if nodes else []
    for node in nodes:
        for index, tensor in enumerate(weights or [None]):
            links.across(node, WeightsPart(version, index, len(weights)), tensor)


def _snapshot(payload: Payload) -> Payload:
    """A copy on the host that later weight updates do not touch."""
    return Payload(payload.shape, payload.dtype, np.array(payload.data, copy=True))
