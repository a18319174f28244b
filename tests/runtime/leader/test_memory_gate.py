"""What single rules of the gate come to; how they work together is in `tests/runtime/test_memory_in_turn.py`."""

from __future__ import annotations

from lemix_hpc.run_setup.memory_limits import StageRoom
from lemix_hpc.runtime.leader.memory_gate import MemoryGate, NodeMemoryLimits
from lemix_hpc.runtime.leader.request_queues import NodeRequest
from lemix_hpc.runtime.transport import messages as m

ROOM = StageRoom(100, 1, 1, 0, 1e9)
LIMITS = NodeMemoryLimits(
    1, (ROOM,), lambda *_: ROOM, 1.0, offloads=False, max_hold=50.0, gpipe=False, useful_in_flight=1
)


def test_training_takes_a_cache_after_the_longest_hold_that_holds_now() -> None:
    now, granted = [0.0], list[m.AnyMessage]()
    request = NodeRequest(1, 0.0, 5, 80, [], 0.0)
    gate = MemoryGate(
        LIMITS,
        lambda: now[0],
        lambda _, message: granted.append(message),
        victim=lambda _: request if request.held else None,
        preempt=lambda _: 80,
    )
    gate.take_cache(request, 80)
    gate.heard(m.AskMemory(7, 40))
    for time in (0.0, 2.0, 49.0):
        now[0] = time
        assert not gate.look()
    gate.heard(m.HoldTraining(60.0))
    now[0] = 55.0
    assert not gate.look()
    assert gate.until == 60.0
    gate.heard(m.HoldTraining(5.0))
    assert gate.look()
    assert granted == [m.GrantMemory(7)]
    assert gate.used.preemptions == 1
