import pytest

from lemix_hpc.runtime.transport.rank_layout import SCHEDULER_RANK, Layout


@pytest.mark.parametrize(("nodes", "stages"), [(1, 1), (2, 2), (3, 4)])
def test_ranks_and_roles_are_inverse(nodes: int, stages: int) -> None:
    layout = Layout(nodes, stages)
    assert layout.leader(0) == SCHEDULER_RANK
    ranks = [layout.leader(n) for n in range(nodes)]
    ranks += [layout.worker(n, s) for n in range(nodes) for s in range(stages)]
    assert sorted(ranks) == list(range(layout.size))
    for node in range(nodes):
        assert layout.node_of(layout.leader(node)) == node
        assert layout.stage_of(layout.leader(node)) is None
        for stage in range(stages):
            rank = layout.worker(node, stage)
            assert (layout.node_of(rank), layout.stage_of(rank)) == (node, stage)


def test_roles_in_words() -> None:
    layout = Layout(2, 2)
    assert layout.role(3) == "node 1, leader"
    assert layout.role(5) == "node 1, stage 1"
