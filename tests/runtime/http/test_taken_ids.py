import pytest

from lemix_hpc.runtime.http.taken_ids import TakenIds
from lemix_hpc.workload.request_stream import RequestStream
from lemix_hpc.workload.tasks import Request


@pytest.mark.parametrize(
    ("ids", "taken", "free"),
    [
        ([], [], ["r0", ""]),
        (
            ["r0", "r1"],
            ["r0", "r1"],
            ["r2", "r", "r01", "r-1", "R0", "r\N{ARABIC-INDIC DIGIT ZERO}", "0", "r" + "9" * 5000],
        ),
        (["line", "r0"], ["line", "r0"], ["r1", "line2"]),
    ],
)
def test_requests_of_a_workload_have_their_ids_for_themselves(
    ids: list[str], taken: list[str], free: list[str]
) -> None:
    known = TakenIds()
    known.of(RequestStream.of([Request(id, 0.0, 1, 1, place=place) for place, id in enumerate(ids)]))
    assert all(id in known for id in taken) and not any(id in known for id in free)
