from lemix_hpc.probe.mpi_links import pairs
from lemix_hpc.runtime.transport.rank_layout import Layout


def test_those_are_paired_that_send_each_other_messages() -> None:
    """Two nodes of a leader and two stages: ranks 0, 1, 2 and 3, 4, 5."""
    assert list(pairs(Layout(2, 2))) == [(0, 1), (1, 2), (0, 3), (3, 4), (4, 5)]
