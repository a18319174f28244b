import numpy as np

from lemix_hpc.engines.protocol import Payload
from lemix_hpc.runtime.messages import WeightsPart
from lemix_hpc.runtime.weight_copies import WeightCopies, snapshot


def tensor(value: float) -> Payload:
    return Payload((2,), "float32", np.full(2, value, dtype=np.float32))


def test_a_version_is_complete_with_all_its_parts_and_taking_it_drops_older_ones() -> None:
    copies = WeightCopies()
    copies.add(WeightsPart(3, 1, 2), tensor(31))
    assert copies.newest is None
    copies.add(WeightsPart(2, 0, 1), tensor(20))
    copies.add(WeightsPart(3, 0, 2), tensor(30))
    assert copies.newest == 3
    assert [part.data[0] for part in copies.take(3)] == [30, 31]
    assert not copies.complete(2)
    assert copies.newest is None


def test_an_engine_without_weights_still_has_versions() -> None:
    copies = WeightCopies()
    copies.add(WeightsPart(1, 0, 0), None)
    assert copies.complete(1)
    assert copies.take(1) == []


def test_a_snapshot_keeps_what_was() -> None:
    original = tensor(1)
    copy = snapshot(original)
    original.data[:] = 2
    assert list(copy.data) == [1, 1]
    assert copy.shape == original.shape
