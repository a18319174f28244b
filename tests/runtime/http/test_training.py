"""Samples and batches through whole runs whose nodes pretend."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.http.conftest import Open, opened, recipe_of, started

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module")
def posted_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """A run that trains on nothing but what clients send, and ends when it has."""
    training = {"sequence_length": 16, "micro_batch_size": 2, "micro_batches_per_step": 2, "micro_batches": 5}
    with opened(recipe_of(training=training), tmp_path_factory.mktemp("posted")) as run:
        yield run
        run.close()


def trained(run: Open) -> dict[str, dict[str, Any]]:
    return {task["id"]: task for task in run.lines("tasks.jsonl") if task["kind"] == "training"}


def test_training_waits_for_samples_takes_them_and_ends(posted_only: Open) -> None:
    run = posted_only
    with run.client() as client:
        one = client.post("/v1/training/samples", json={"text": "hello"})
        assert (one.status_code, one.json()["ids"], one.json()["accepted"]) == (200, ["sample0"], 1)
        first = run.until(lambda: trained(run).get("posted0"))
        assert (first["samples"], first["step"], first["tokens"]) == (["sample0"], 1, 32)
        lines = "\n".join(json.dumps({"text": "x" * 15}) for _ in range(8))
        assert client.post("/v1/training/samples", content=lines).json()["accepted"] == 8
        tasks = run.until(lambda: len(found := trained(run)) == 5 and found)
        bad = client.post("/v1/training/samples", content=b'{"text": "y"}\n{"text": }')
        over = run.until(
            lambda: (r := client.post("/v1/training/samples", json={"text": "z"})).status_code != 200 and r
        )
    assert [tasks[f"posted{n}"]["samples"] for n in range(1, 5)] == [
        [f"sample{2 * n - 1}", f"sample{2 * n}"] for n in range(1, 5)
    ]
    steps = {(task["node"], task["step"]) for task in tasks.values()}
    assert len(steps) == 3, "one for the first sample alone, and two of two micro-batches"
    assert bad.status_code in (400, 409) and over.status_code == 409
    assert "sample9" not in {entry["id"] for entry in run.lines("samples.jsonl")} - {"sample9"}


def test_training_that_waits_for_samples_ends_with_the_endpoint(tmp_path: Path) -> None:
    with started(recipe_of({"duration_s": 0.5}, training={"micro_batches": 5}), tmp_path) as process:
        assert process.wait(120) == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "facts.json").exists() and (tmp_path / "tasks.jsonl").read_text() == ""


def test_samples_go_before_the_ordinary_data(tmp_path: Path) -> None:
    with opened(recipe_of(), tmp_path) as run, run.client() as client:
        run.until(lambda: "t9" in trained(run))
        talk = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
        assert client.post("/v1/training/samples", json={"messages": talk}).status_code == 200
        before = max(task["number"] for task in trained(run).values())
        sample = run.until(lambda: trained(run).get("posted0"))
        last = max(int(id[1:]) for id in trained(run) if id.startswith("t"))
        run.until(lambda: f"t{last + 5}" in trained(run))
        run.close()
    assert sample["samples"] == ["sample0"] and sample["number"] > before
    ordinary = sorted(int(id[1:]) for id in trained(run) if id.startswith("t"))
    assert ordinary == list(range(len(ordinary))), "nothing of it was left out"


def test_a_batch_is_answered_line_by_line(tmp_path: Path) -> None:
    def line(name: str, **body: Any) -> str:
        return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/completions", "body": body})

    batch = tmp_path / "batch.jsonl"
    good = [line(f"line{n}", prompt="hi", max_tokens=n % 4 + 1) for n in range(20)]
    batch.write_text(
        "\n".join([*good, line("no", prompt="bad"), line("gone", prompt="die"), "{", line("line3", prompt="x")])
    )
    recipe = recipe_of(serving={"source": {"kind": "openai-batch", "path": str(batch)}})
    path = tmp_path / "run"
    with started(recipe, path) as process:
        assert process.wait(120) == 0, (path / "log").read_text()
    results = [json.loads(text) for text in (path / "results.jsonl").read_text().splitlines()]
    assert len(results) == 24
    answered = {result["custom_id"]: result["response"] for result in results if result["error"] is None}
    assert set(answered) == {f"line{n}" for n in range(20)} | {"no"}
    for n in range(20):
        answer = answered[f"line{n}"]
        assert answer["status_code"] == 200
        assert answer["body"]["choices"][0]["text"].split() == ["one", "two", "three", "four"][: n % 4 + 1]
    assert answered["no"]["status_code"] == 400
    errors = [(result["custom_id"], result["error"]["message"]) for result in results if result["error"]]
    assert {name for name, _ in errors} == {None, "gone", "line3"}
    tasks = {task["id"]: task["outcome"] for task in map(json.loads, (path / "tasks.jsonl").read_text().splitlines())}
    assert (tasks["line0"], tasks["no"], tasks["gone"]) == ("finished", "rejected", "lost")
