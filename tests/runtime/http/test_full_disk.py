"""Clients of a run whose disk is full: what cannot be promised is refused, and nothing that was is lost."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lemix_hpc.records.inheritance import inherit
from tests.runtime.http.conftest import opened, recipe_of
from tests.small_disk import SmallDisk, small_disk

pytestmark = pytest.mark.mpi


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", 8) as disk:
        if disk.prefix:
            pytest.skip("the ranks of this test are no commands that enter a namespace")
        yield disk


def test_calls_are_refused_when_reserved_space_is_used_up(disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_RESERVE", "16384")
    accepted: list[str] = []

    def call(client: httpx.Client, number: int) -> httpx.Response:
        answer = client.post(
            "/v1/completions", json={"prompt": "hi", "max_tokens": 3}, headers={"x-request-id": f"c{number}"}
        )
        if answer.status_code == 200:
            accepted.append(f"c{number}")
        return answer

    with opened(recipe_of(training=None), disk.path / "run") as run, run.client() as client:
        call(client, 0)
        disk.fill()
        number = 1
        while (answer := call(client, number)).status_code == 200:
            number += 1
            assert number < 2000
        assert number > 5, "reserved space is used first"
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
        error = answer.json()["error"]
        assert error["type"] == "service_unavailable_error" and "No space left on device" in error["message"]
        assert client.get("/health").status_code == 503
        disk.free()
        run.until(lambda: call(client, 2000).status_code == 200)
        run.close()
    everything = inherit(disk.path / "run", None)
    assert everything.damage == [] and not everything.waiting
    assert sorted(task.id for task in everything.served if task.outcome == "finished") == sorted(accepted)
