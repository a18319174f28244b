"""The endpoint in front of real vLLM servers on two nodes that train, as clients see it."""

import contextlib
import itertools
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from lemix_hpc.launch.local import environment
from tests.inputs.http_table import http_rows
from tests.runtime.conftest import A100, SUMS, tiny_llama
from tests.runtime.http.conftest import KEY, Open, opened_by
from tests.runtime.http.odd_calls import ODD_VALUES

pytest.importorskip("vllm")
pytestmark = pytest.mark.mpi

LINES = 6


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """It begins with a batch, keeps a pace, and ends well when it is told to, with a report of both classes. Nothing is left to
    compile when clients come, not even for log-probabilities."""
    directory = tmp_path_factory.mktemp("vllm")
    batch = directory / "batch.jsonl"
    lines = [
        {
            "custom_id": f"line{n}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": "1+1=", "max_tokens": n + 1},
        }
        for n in range(LINES)
    ]
    wrong = {
        "custom_id": "wrong",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"prompt": "x", "temperature": -1},
    }
    # Too large for vLLM, which fails in it instead of refusing it.
    huge = lines[0] | {"custom_id": "huge", "body": {"prompt": "x", "top_k": 1 << 64}}
    batch.write_text("\n".join(map(json.dumps, [*lines, wrong])) + "\n{\n" + json.dumps(huge) + "\n")
    recipe = {
        "name": "endpoint",
        "nodes": {"count": 2, "stages": 1},
        "model": {"config": tiny_llama(2, hidden_size=128, intermediate_size=224, vocab_size=300)},
        "engine": {"kind": "vllm", "coefficients": str(A100)},
        "serving": {"http": {"port": 0, "api_key": KEY}, "source": {"kind": "openai-batch", "path": str(batch)}},
        "training": {"sequence_length": 64, "data": {"path": str(SUMS)}},
        "policy": {"placement": "round-robin"},
        "slo": {"ttft_ms": 400, "tpot_ms": 60},
    }
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    out = directory / "run"
    command = [str(Path(sys.executable).with_name("lemix")), "run", str(directory / "recipe.yaml"), "--out", str(out)]
    own = environment() | {"XDG_STATE_HOME": str(directory), "OMP_NUM_THREADS": "1", "TORCH_LOGS": "dynamo"}
    log = out / "logs" / "attempt-0" / "rank-0.log"
    with (directory / "log").open("w") as file:
        process = subprocess.Popen(
            [*command, "--cluster", "local"], env=own, stdout=file, stderr=subprocess.STDOUT, text=True
        )
        try:
            endpoint = opened_by(process, out, log)
            compiled = compiled_in(out)
            assert compiled.count("batched_count_greater_than") == 2, "for log-probabilities, on both nodes"
            yield endpoint
            endpoint.close()
            assert compiled_in(out) == compiled
            check_classes(endpoint)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(60)


def compiled_in(run: Path) -> list[str]:
    """The functions that ranks have compiled with torch so far."""
    logs = sorted((run / "logs" / "attempt-0").glob("rank-*.log"))
    return [name for log in logs for name in re.findall(r"start tracing (\w+)", log.read_text(errors="replace"))]


def check_classes(run: Open) -> None:
    """The report's figures of each class: a batch file of the recipe, one that was uploaded, and calls."""
    report = json.loads((run.path / "report.json").read_text())
    assert report["pace_ms"] == {"ttft": 400, "tpot": 60}
    tasks = [task for task in run.lines("tasks.jsonl") if task["kind"] == "serving"]
    for service, limits in (("interactive", {"ttft", "tpot", "all"}), ("batch", {"window"})):
        members = [task for task in tasks if task["service"] == service]
        finished = sum(task["outcome"] == "finished" for task in members)
        figures = report["serving"]["classes"][service]
        assert (figures["received"], figures["finished"]) == (len(members), finished)
        assert set(figures["attainment"]) == limits
    assert figures["attainment"]["window"] == finished / len(members) and finished >= LINES


def test_a_run_is_found_by_its_name(run: Open, tmp_path: Path) -> None:
    lemix = [str(Path(sys.executable).with_name("lemix")), "url", str(run.path)]
    own = environment() | {"XDG_STATE_HOME": str(tmp_path)}
    found = subprocess.run(lemix, env=own, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == run.url


@contextlib.contextmanager
def clients(run: Open) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{run.url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def test_completions_and_chats_with_the_weight_versions_they_span(run: Open) -> None:
    with clients(run) as client:
        raw = client.completions.with_raw_response.create(
            model="endpoint", prompt="1+1=", max_tokens=8, logprobs=2, seed=1, extra_body={"ignore_eos": True}
        )
        answer = raw.parse()
        first, last = map(int, raw.headers["x-lemix-weight-versions"].split("-"))
        logprobs = answer.choices[0].logprobs
        assert answer.usage.completion_tokens == 8 and logprobs is not None and len(logprobs.tokens or []) == 8
        assert answer.usage.model_extra == {"weight_versions": [first, last]}
        task = run.task(raw.headers["x-request-id"])
        assert (task["outcome"], len(task["output"]), task["versions"]) == ("finished", 8, [first, last])
        chat = client.chat.completions.create(
            model="endpoint", messages=[{"role": "user", "content": "1+1="}], max_completion_tokens=4
        )
        assert 1 <= chat.usage.completion_tokens <= 4 and chat.choices[0].message.role == "assistant"


def test_nodes_take_turns_and_train_meanwhile(run: Open) -> None:
    with clients(run) as client:
        answers = [
            client.completions.with_raw_response.create(model="endpoint", prompt="2+2=", max_tokens=2) for _ in range(4)
        ]
    tasks = [run.task(answer.headers["x-request-id"]) for answer in answers]
    assert {task["node"] for task in tasks} == {0, 1}
    for before, after in itertools.pairwise(tasks):
        assert before["first_token"] <= before["finished"] <= after["arrival"] + 0.01, "the nodes' clocks agree"
    for node in (0, 1):
        versions = [task["versions"] for task in tasks if task["node"] == node]
        assert versions == sorted(versions), "weights of a node only go forward"


def test_streams_end_with_their_usage(run: Open) -> None:
    with clients(run) as client:
        events = list(
            client.completions.create(
                model="endpoint",
                prompt="3+4=",
                max_tokens=6,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
        )
    assert len(events) > 2, "tokens come one by one"
    assert events[-1].usage.completion_tokens == 6
    first, last = (events[-1].usage.model_extra or {})["weight_versions"]
    assert 0 <= first <= last


def test_models_health_and_metrics(run: Open) -> None:
    with clients(run) as client, run.client() as plain:
        assert [model.id for model in client.models.list()] == ["endpoint"]
        assert plain.get("/health").json() == {"status": "ok", "nodes": 2}
        assert plain.post("/tokenize", json={"prompt": "1+1="}).json()["tokens"] == [49, 43, 49, 61]
        text = plain.get("/metrics").text
    for node in (0, 1):
        assert re.search(rf'^vllm:generation_tokens_total\{{node="{node}",.*\}} [1-9]', text, re.MULTILINE)
        assert re.search(rf'^lemix_weight_version\{{node="{node}"\}} [1-9]', text, re.MULTILINE)
    assert re.search(r"^lemix_training_loss \d", text, re.MULTILINE)


def test_vllms_own_errors_come_through(run: Open) -> None:
    with clients(run) as client:
        with pytest.raises(openai.BadRequestError, match="max_tokens"):
            client.completions.create(model="endpoint", prompt="x", max_tokens=5000)
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.completions.create(model="another", prompt="x")


def test_a_call_that_breaks_vllms_server_ends_alone(run: Open) -> None:
    deep = '{"model": "endpoint", "prompt": "a", "x": %s}' % ('{"a":' * 700 + "1" + "}" * 700)
    with run.client() as client:
        for content in (deep, '{"model": "endpoint", "prompt": "a", "top_k": 18446744073709551616}'):
            assert client.post("/v1/completions", content=content).status_code == 400
        plain = {"model": "endpoint", "prompt": "1+1=", "max_tokens": 2}
        first = {"X-Vllm-Priority": "99999999999999999999"}
        assert client.post("/v1/%63ompletions", json=plain, headers=first).status_code == 200
        assert (
            client.post("/v1/completions", json=plain | {"seed": -(1 << 63), "top_k": (1 << 63) - 1}).status_code == 200
        )


@pytest.mark.parametrize("row", ODD_VALUES)
def test_odd_values_are_answered_or_refused(run: Open, row: str) -> None:
    statuses = http_rows()[row].statuses
    with run.client() as client:
        for given in ODD_VALUES[row]:
            chat = "messages" in given
            plain = {"model": "endpoint", "max_tokens": 1} | ({} if chat else {"prompt": "x"})
            answer = client.post(f"/v1/{'chat/' * chat}completions", json=plain | given)
            assert answer.status_code in statuses, (given, answer.text[:300])
            assert answer.status_code == 200 or answer.json()["error"]["message"]


def test_grammars_that_cannot_be_compiled_are_refused_and_others_are_kept_to(run: Open) -> None:
    """In whatever part of a call they come; every kind is in tests/engines/vllm/test_grammar_check.py."""
    chat = {"model": "endpoint", "messages": [{"role": "user", "content": "x"}], "max_tokens": 8}
    plain = {"model": "endpoint", "prompt": "x", "max_tokens": 8}
    calls = [
        ("/v1/chat/completions", chat | {"response_format": json_schema({"$ref": "#"})}),
        ("/v1/chat/completions", chat | {"response_format": json_schema({"$ref": "#"}), "stream": True}),
        ("/v1/completions", plain | {"structured_outputs": {"json": {"$ref": "#/none"}}}),
        ("/v1/completions", plain | {"structured_outputs": {"grammar": "?? ::="}}),
        # They begin well.
        ("/v1/completions", plain | {"structured_outputs": {"grammar": 'root ::= "ab" x\nx ::= x'}}),
        ("/v1/completions", plain | {"structured_outputs": {"grammar": 'root ::= "a" x\nx ::= x'}, "stream": True}),
    ]
    with run.client() as client:
        client.timeout = 90  # the first one waits for a process
        for path, body in calls:
            answer = client.post(path, json=body)
            if answer.status_code == 200 and body.get("stream"):  # it had begun
                assert "lets no token follow" in answer.text and "DONE" not in answer.text
                continue
            assert answer.status_code == 400, answer.text
            error = answer.json()["error"]
            assert error["type"] and "grammar" in error["message"]
        choice = {"structured_outputs": {"choice": ["yes", "no"]}}
        assert client.post("/v1/completions", json=plain | choice).json()["choices"][0]["text"] in ("yes", "no")
        large = {"structured_outputs": {"regex": "(((a{1,1000}){1,1000}){1,1000}){1,1000}"}}
        assert set(client.post("/v1/completions", json=plain | large).json()["choices"][0]["text"]) == {"a"}


def json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def test_a_client_that_hangs_up_ends_its_generation(run: Open) -> None:
    body = {"prompt": "1+1=", "max_tokens": 500, "stream": True, "ignore_eos": True}
    with (
        run.client() as client,
        client.stream("POST", "/v1/completions", json=body, headers={"x-request-id": "left"}) as answer,
    ):
        next(answer.iter_raw())
    task = run.task("left")
    assert task["outcome"] == "aborted" and len(task["output"]) < 500


def test_samples_are_trained_on(run: Open) -> None:
    with run.client() as client:
        answer = client.post("/v1/training/samples", json={"prompt": "1+1=", "completion": "2"})
    assert answer.json()["ids"] == ["sample0"]
    task = run.task("posted0")
    assert task["samples"] == ["sample0"] and task["step"] >= 1 and task["loss"] > 0


def test_a_batch_that_a_client_uploads(run: Open) -> None:
    line: dict[str, Any] = {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions"}
    line |= {"body": {"messages": [{"role": "user", "content": "1+1="}], "max_tokens": 3}}
    with openai.OpenAI(base_url=f"{run.url}/v1", api_key=KEY, max_retries=0) as client:
        file = client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        batch = run.until(lambda: (told := client.batches.retrieve(batch.id)).status == "completed" and told)
        assert batch.output_file_id is not None and batch.error_file_id is None
        [answer] = map(json.loads, client.files.content(batch.output_file_id).text.splitlines())
    assert answer["custom_id"] == "one" and answer["response"]["body"]["usage"]["completion_tokens"] == 3


def test_the_batch_has_its_results(run: Open) -> None:
    def complete() -> list[dict[str, Any]]:
        results = run.lines("results.jsonl")
        return results if len(results) == LINES + 3 else []

    results = {result["custom_id"]: result for result in run.until(complete)}
    for n in range(LINES):
        response = results[f"line{n}"]["response"]
        assert response["status_code"] == 200 and results[f"line{n}"]["error"] is None
        assert 1 <= response["body"]["usage"]["completion_tokens"] <= n + 1
        assert response["body"]["id"].startswith(f"cmpl-{response['request_id']}")
    assert results["wrong"]["response"]["status_code"] == 400
    assert "line 8: not valid JSON" in results[None]["error"]["message"]
    assert "An integer in `top_k` does not fit into 64 bits" in results["huge"]["error"]["message"]
