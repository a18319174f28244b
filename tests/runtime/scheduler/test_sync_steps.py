"""Which groups make a step of all nodes."""

import pytest

from lemix_hpc.runtime.scheduler.sync_steps import StepsTogether
from lemix_hpc.runtime.transport.messages import StepTogether


def test_a_step_is_settled_when_its_groups_have_gone_to_nodes_and_over_when_all_have_taken_it() -> None:
    steps = StepsTogether([0, 1])
    steps.offered(0)
    assert steps.takes_more
    steps.offered(1)
    assert not steps.takes_more
    steps.placed(0, 1, 3)
    assert steps.next_orders(no_more=False) == {}
    steps.placed(1, 1, 1)
    assert steps.next_orders(no_more=False) == {0: StepTogether(0, []), 1: StepTogether(0, [(0, 0.75), (1, 0.25)])}
    assert steps.next_orders(no_more=False) == {}, "told once"
    assert not steps.takes_more
    assert steps.stepped(1, 0) == {}
    assert steps.stepped(0, 0) == {0: 1, 1: 1}
    assert steps.takes_more


def test_what_is_left_makes_a_smaller_step() -> None:
    steps = StepsTogether([2, 3])
    steps.offered(4)
    steps.offered(5)
    steps.placed(4, 3, 2)
    assert steps.next_orders(no_more=True) == {}, "a group still waits for the policy"
    steps.dropped(5)
    assert steps.next_orders(no_more=False) == {}, "another may come"
    assert steps.next_orders(no_more=True) == {2: StepTogether(4, []), 3: StepTogether(4, [(4, 1.0)])}


def test_a_step_that_nobody_was_told_of_is_an_error() -> None:
    with pytest.raises(ValueError, match="node 0 has taken step 7"):
        StepsTogether([0, 1]).stepped(0, 7)
