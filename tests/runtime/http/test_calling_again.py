"""Clients that call again after the run was killed: real ranks and journals, nodes that pretend."""

import json
import os
import signal
from pathlib import Path

import pytest

from lemix_hpc.records.inheritance import inherit
from tests.runtime.http.conftest import Open, opened, recipe_of

pytestmark = pytest.mark.mpi

ASKED = {"whole": {"prompt": "hi", "max_tokens": 3}, "stream": {"prompt": "hi", "stream": True}}
SAMPLES = b'{"text": "one"}\n{"text": "two"}'


def killed(run: Open) -> None:
    """The scheduler's rank, and all others with it."""
    os.kill(run.pid, signal.SIGKILL)
    assert run.process.wait(60) != 0


def test_answers_and_acknowledgements_outlive_the_ranks(tmp_path: Path) -> None:
    recipe = recipe_of(training={"sequence_length": 16, "micro_batch_size": 2, "micro_batches": 40})
    with opened(recipe, tmp_path) as run, run.client() as client:
        first = {
            name: client.post("/v1/completions", json=body, headers={"x-request-id": name})
            for name, body in ASKED.items()
        }
        taken = client.post("/v1/training/samples", content=SAMPLES, headers={"x-request-id": "samples"}).json()
        assert taken["ids"] == ["sample0", "sample1"]
        # On the disk when the next one has an outcome.
        run.until(lambda: len(inherit(tmp_path, None).served) == 2)
        killed(run)
        (tmp_path / "log").unlink()
    with opened(recipe, tmp_path) as run, run.client() as client:
        for name, body in ASKED.items():
            again = client.post("/v1/completions", json=body, headers={"x-request-id": name})
            assert again.content == first[name].content and again.headers["x-lemix-replayed"] == "true"
        assert (
            client.post("/v1/completions", json={"prompt": "x"}, headers={"x-request-id": "whole"}).status_code == 422
        )
        headers = {"x-request-id": "samples"}
        assert client.post("/v1/training/samples", content=SAMPLES, headers=headers).json() == taken
        assert client.post("/v1/training/samples", content=b'{"text": "x"}', headers=headers).status_code == 422
        new = client.post("/v1/training/samples", content=SAMPLES).json()
        assert new["ids"] == ["sample2", "sample3"]
        run.until(
            lambda: (
                {"sample0", "sample1", "sample2", "sample3"}
                <= {name for task in run.lines("tasks.jsonl") for name in task.get("samples", [])}
            )
        )
        run.close()
    tasks = [json.loads(line) for line in (tmp_path / "tasks.jsonl").read_text().splitlines()]
    assert sorted(task["id"] for task in tasks if task["kind"] == "serving") == ["stream", "whole"]
    trained = [name for task in tasks for name in task.get("samples", [])]
    assert sorted(trained) == [f"sample{n}" for n in range(4)], "each is trained on once"
