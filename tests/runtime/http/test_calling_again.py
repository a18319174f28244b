"""Clients that call again after the run was killed: real ranks and journals, nodes that pretend."""

import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from lemix_hpc.records.inheritance import inherit
from lemix_hpc.records.journal import journal_parts
from lemix_hpc.records.schema import ServedTask, TrainedTask
from tests.records.attempt_files import outcomes
from tests.runtime.http.conftest import Open, opened, recipe_of

pytestmark = pytest.mark.mpi

ASKED = {"whole": {"prompt": "hi", "max_tokens": 3}, "stream": {"prompt": "hi", "stream": True}}
LINE = {"method": "POST", "url": "/v1/completions"}
SAMPLES = b'{"text": "one"}\n{"text": "two"}'


def killed(run: Open) -> None:
    """The scheduler's rank, and all others with it."""
    os.kill(run.pid, signal.SIGKILL)
    assert run.process.wait(60) != 0


def ended(run_dir: Path) -> int:
    """Requests whose outcome is safe on the disk."""
    inherited = inherit(run_dir, None)
    return inherited.tally.total + len(inherited.served)


def test_answers_and_acknowledgements_outlive_the_ranks_and_the_parts_of_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_PART", "300")
    recipe = recipe_of(training={"sequence_length": 16, "micro_batch_size": 2, "micro_batches": 40})
    with opened(recipe, tmp_path) as run, run.client() as client:
        first = {
            name: client.post("/v1/completions", json=body, headers={"x-request-id": name})
            for name, body in ASKED.items()
        }
        taken = client.post("/v1/training/samples", content=SAMPLES, headers={"x-request-id": "samples"}).json()
        assert taken["ids"] == ["sample0", "sample1"]
        lines = [{"custom_id": prompt} | LINE | {"body": {"prompt": prompt}} for prompt in ("hi", "never")]
        form = {"file": "\n".join(map(json.dumps, lines)).encode()}
        file = client.post("/v1/files", data={"purpose": "batch"}, files=form).json()["id"]
        asked = {"input_file_id": file, "endpoint": LINE["url"], "completion_window": "24h"}
        batch = client.post("/v1/batches", json=asked).json()["id"]
        run.until(lambda: client.get(f"/v1/batches/{batch}").json()["request_counts"]["completed"] == 1)
        # On the disk when the next one has an outcome.
        run.until(lambda: ended(tmp_path) == 3)
        run.until(lambda: journal_parts(tmp_path / "attempts" / "0")[-1] > 2)
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
                <= {name for task in outcomes(tmp_path) if isinstance(task, TrainedTask) for name in task.samples}
            )
        )
        # Of its two lines one was answered, and goes on to be.
        run.until(lambda: client.get(f"/v1/batches/{batch}").json()["request_counts"]["failed"] == 0)
        client.post(f"/v1/batches/{batch}/cancel")
        run.until(lambda: client.get(f"/v1/batches/{batch}").json()["status"] == "cancelled")
        told = client.get(f"/v1/batches/{batch}").json()
        [answer] = map(json.loads, client.get(f"/v1/files/{told['output_file_id']}/content").text.splitlines())
        assert (answer["custom_id"], told["request_counts"]["completed"]) == ("hi", 1)
        run.close()
    tasks = outcomes(tmp_path)
    served = Counter(task.id for task in tasks if isinstance(task, ServedTask))
    # The other line may have been cancelled before it was asked again.
    assert served.pop(f"{batch}-2", 1) == 1
    assert served == {f"{batch}-1": 1, "stream": 1, "whole": 1}
    trained = [name for task in tasks if isinstance(task, TrainedTask) for name in task.samples]
    assert sorted(trained) == [f"sample{n}" for n in range(4)], "each is trained on once"
