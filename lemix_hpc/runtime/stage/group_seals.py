"""How the gradient of a group comes together over the stages of a node: each seals its part, and norms go up the pipeline.

To seal is work like the preparation of a step, and the first part of it: it rests for serving. A stage begins once its part is
whole, whether or not the stages behind are through; the first one, which sums the gradient of tied weights, once they are.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import partial

from lemix_hpc.engines.protocol import GroupGradient, Payload, StageEngine
from lemix_hpc.runtime.stage.links import StageLinks
from lemix_hpc.runtime.stage.weight_updates import WeightUpdates
from lemix_hpc.runtime.stage.work_items import Arrived, Pass
from lemix_hpc.runtime.transport import messages as m


class GroupSeals:
    """The groups that have ended on a stage, until the stage before knows their norm; the first stage then decides to step."""

    def __init__(
        self, links: StageLinks, engine: StageEngine, updates: WeightUpdates, now: Callable[[], float]
    ) -> None:
        self._place = links.place
        self._links = links
        self._engine = engine
        self._updates = updates
        self._now = now
        self._open: set[int] = set()
        self._to_begin: set[int] = set()
        self._waiting: deque[Arrived[Pass]] = deque()
        self._sealed: dict[int, GroupGradient] = {}
        self._sealed_behind: dict[int, m.Sealed] = {}
        self._tied: dict[int, Payload] = {}

    @property
    def open(self) -> bool:
        """Whether a group has ended here, and it is not sealed here and behind yet."""
        return bool(self._open)

    @property
    def since(self) -> float:
        """Since when there is a gradient to seal [s]; inf without one."""
        return self._waiting[0].since if self._waiting else math.inf

    def take(self) -> Pass:
        """The work to start now."""
        return self._waiting.popleft().message

    def whole(self, group: int) -> None:
        """A group's gradient has everything that belongs to it on this stage."""
        self._open.add(group)
        self._to_begin.add(group)
        self._begin(group)

    def sealed_behind(self, message: m.Sealed) -> None:
        """The stages behind this one have sealed a group."""
        self._sealed_behind[message.group] = message
        self._begin(message.group)
        self._pass_on(message.group)

    def tied_arrived(self, group: int, gradient: Payload | None) -> None:
        """On the first stage: the last one's gradient of the weights that both have."""
        assert gradient is not None, "it is what the message is for"
        self._tied[group] = gradient
        self._begin(group)

    def _begin(self, group: int) -> None:
        if group not in self._to_begin or not self._all_here(group):
            return
        self._to_begin.discard(group)
        sealing = self._engine.seal(group, self._tied.pop(group, None))
        if isinstance(sealing, GroupGradient):
            self._sealed_here(group, sealing)
        else:
            self._waiting.append(
                Arrived(Pass("step", sealing, partial(self._sealed_here, group), []), None, self._now())
            )

    def _all_here(self, group: int) -> bool:
        """Whether what other stages have of the group's gradient, and this one needs, has come."""
        behind = self._behind(group)
        return not self._place.first or (behind is not None and (not behind.tied or group in self._tied))

    def _behind(self, group: int) -> m.Sealed | None:
        return m.Sealed(group, 0.0) if self._place.last else self._sealed_behind.get(group)

    def _sealed_here(self, group: int, gradient: GroupGradient) -> None:
        self._sealed[group] = gradient
        if gradient.tied is not None and not self._place.first:
            self._links.to_first(m.TiedGradient(group), gradient.tied)
        self._pass_on(group)

    def _pass_on(self, group: int) -> None:
        """Tell the stage before once a group is sealed here and behind; the first stage decides to step."""
        behind = self._behind(group)
        if group not in self._sealed or behind is None:
            return
        gradient = self._sealed.pop(group)
        self._sealed_behind.pop(group, None)
        self._open.discard(group)
        square_norm = behind.square_norm + gradient.square_norm
        if self._place.first:
            self._updates.step(group, math.sqrt(square_norm), gradient.tied)
        else:
            self._links.up(m.Sealed(group, square_norm, behind.tied or gradient.tied is not None))
