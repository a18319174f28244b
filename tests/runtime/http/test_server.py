"""The endpoint of a whole run, as clients see it; its nodes pretend."""

import contextlib
import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.runtime.conftest import tiny_llama
from tests.runtime.http.conftest import KEY, Open, opened, recipe_of, started

pytestmark = pytest.mark.mpi


def seen(answer: dict[str, Any]) -> tuple[int, str, dict[str, str]]:
    """What a node saw of a call: its own number, the path, the headers."""
    node, path, headers, _ = json.loads(answer["system_fingerprint"])
    return node, path, dict(headers)


def complete(client: httpx.Client, prompt: str = "hi", **more: Any) -> httpx.Response:
    headers = more.pop("headers", {})
    return client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 3} | more, headers=headers)


def test_calls_reach_the_nodes_of_the_policys_choice_as_they_are(run: Open) -> None:
    with run.client() as client:
        headers = {"x-vllm-priority": "-2147483648", "traceparent": "here"}
        answers = [
            client.post("/v1/%63ompletions?a=%20b", json={"prompt": "hi", "max_tokens": 3}, headers=headers)
            for _ in range(4)
        ]
    looks = [seen(answer.json()) for answer in answers]
    assert [node for node, _, _ in looks] in ([0, 1, 0, 1], [1, 0, 1, 0])
    for answer, (_, path, headers) in zip(answers, looks, strict=True):
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["text"] == "one two three "
        assert path == "/v1/completions"
        assert headers == {"accept": "*/*", "content-type": "application/json", "traceparent": "here"}, (
            "and nothing else"
        )


def test_the_openai_client_completes_chats_and_streams(run: Open) -> None:
    with openai.OpenAI(base_url=f"{run.url}/v1", api_key=KEY, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["stand-in"]
        whole = client.completions.create(model="stand-in", prompt="hi", max_tokens=2)
        assert (whole.choices[0].text, whole.usage.completion_tokens) == ("one two ", 2)
        said: Any = [{"role": "user", "content": "hi"}]
        chat = client.chat.completions.create(model="stand-in", messages=said)
        assert chat.choices[0].message.content == "one two three four "
        pieces = list(client.chat.completions.create(model="stand-in", messages=said, stream=True))
        assert [piece.choices[0].delta.content for piece in pieces] == ["one ", "two ", "three ", "four "]
        with pytest.raises(openai.BadRequestError, match="no such thing"):
            client.completions.create(model="stand-in", prompt="bad")


def test_events_come_byte_for_byte_and_one_by_one(run: Open) -> None:
    body = {"prompt": "stall", "stream": True}
    with run.client() as client, client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        first = next(answer.iter_raw())
        assert first.startswith(b"data: {") and first.endswith(b"}\n\n"), "while the rest is still to come"
    with run.client() as client:
        text = client.post("/v1/completions", json={"prompt": "x", "stream": True}).text
    assert text.endswith("}\n\ndata: [DONE]\n\n") and text.count("data: ") == 5


def test_records_have_the_clients_name_and_what_became_of_it(run: Open) -> None:
    with run.client() as client:
        answer = complete(client, headers={"x-request-id": "mine"})
        assert answer.headers["x-request-id"] == "mine"
        assert complete(client, "bad", headers={"x-request-id": "wrong"}).status_code == 400
        assert complete(client, "die", headers={"x-request-id": "dead"}).status_code == 502
        other = complete(client, headers={"x-request-id": "x" * 200}).headers["x-request-id"]
        assert complete(client, headers={"x-request-id": "later"}, service_tier="flex").status_code == 200
    mine, later = run.task("mine"), run.task("later")
    assert (mine["service"], later["service"]) == ("interactive", "batch")
    assert run.until(lambda: run.progress["classes"].get("batch", {}).get("finished") == 1)
    assert (mine["outcome"], mine["prompt_tokens"], mine["output"]) == ("finished", 2, [7, 7, 7])
    assert mine["arrival"] <= mine["placed"] <= mine["finished"] and len(mine["versions"]) == 2
    assert (run.task("wrong")["outcome"], run.task("dead")["outcome"]) == ("rejected", "lost")
    assert other.startswith("http-") and run.task(other)["outcome"] == "finished"


def test_a_client_that_hangs_up_aborts_its_call(run: Open) -> None:
    with run.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/completions", json={"prompt": "never"}, headers={"x-request-id": "left"}, timeout=0.3)
    assert run.task("left")["outcome"] == "aborted"
    body = {"prompt": "stall", "stream": True}
    headers = {"x-request-id": "left streaming"}
    with run.client() as client, client.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
        next(answer.iter_raw())
    assert run.task("left streaming")["outcome"] == "aborted"


def test_silence_ends_in_an_error_and_an_abort(run: Open) -> None:
    with run.client() as client:
        answer = complete(client, "never", headers={"x-request-id": "silence"})
        assert answer.status_code == 504
        assert answer.json()["error"]["type"] == "timeout_error"
        body = {"prompt": "stall", "stream": True}
        events = client.post("/v1/completions", json=body).text.split("\n\n")
    assert "did not answer within 3 s" in json.loads(events[-2].removeprefix("data: "))["error"]["message"]
    number = run.task("silence")["number"]
    assert run.task("silence")["outcome"] == "lost" and f"abort of {number}\n" in run.log


@pytest.mark.parametrize("key", [None, "open", KEY[:-1], f"{KEY}\u00e9"])
def test_a_wrong_key_stays_out(run: Open, key: str | None) -> None:
    headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode("latin-1"))]
    for method, path in (
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("POST", "/tokenize"),
    ):
        answer = httpx.request(method, run.url + path, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert httpx.post(f"{run.url}/v1/training/samples", headers=headers, content=b'{"text": "x"}').status_code == 401
    assert httpx.get(f"{run.url}/health", headers=headers).status_code == 200, "open to load balancers"


def test_what_is_too_large_malformed_or_unknown_is_refused_in_openais_words(run: Open) -> None:
    with run.client() as client:
        large = client.post("/v1/completions", content=b"x" * 200_000)
        pieces = client.post("/v1/completions", content=iter([b"x" * 60_000] * 3))
        malformed = client.post("/v1/completions", content=b'{"prompt": ')
        no_object = client.post("/v1/chat/completions", content=b"[1]")
        unknown, method = client.get("/v1/engines"), client.get("/v1/completions")
        # What vLLM's server has for its developers stays inside.
        inside = client.post("/reset_prefix_cache")
    answers = (large, pieces, malformed, no_object, unknown, method, inside)
    assert [answer.status_code for answer in answers] == [413, 413, 400, 400, 404, 405, 404]
    assert all(answer.json()["error"]["type"] == "invalid_request_error" for answer in answers)
    assert "0.1 MB" in large.json()["error"]["message"]


def test_odd_bodies_are_left_to_the_node_to_refuse(run: Open) -> None:
    with run.client() as client:
        for body in ({"prompt": "hi", "max_tokens": 0}, {"prompt": ["a", [1, 2], 3, None], "max_tokens": 2}):
            assert client.post("/v1/completions", json=body).status_code == 200
        said = {"messages": [None, {"role": 1, "content": "hi"}], "max_tokens": 10**15}
        assert client.post("/v1/chat/completions", json=said).status_code == 200


def test_tokenize_goes_to_a_node_and_leaves_no_record(run: Open) -> None:
    with run.client() as client:
        answer = client.post("/tokenize", json={"prompt": "hi"}, headers={"x-request-id": "tokens"})
        assert answer.json()["count"] == 3
        complete(client, headers={"x-request-id": "after tokens"})
    run.task("after tokens")
    assert not [task for task in run.lines("tasks.jsonl") if task["id"] == "tokens"]


def test_many_clients_at_the_same_time(run: Open) -> None:
    with ThreadPoolExecutor(16) as pool, run.client() as client:
        answers = list(pool.map(lambda n: complete(client, headers={"x-request-id": f"many{n}"}), range(64)))
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(answer.headers["x-request-id"] for answer in answers) == sorted(f"many{n}" for n in range(64))
    assert {seen(answer.json())[0] for answer in answers} == {0, 1}


def test_health_and_metrics_are_of_all_nodes(run: Open) -> None:
    with run.client() as client:
        complete(client, headers={"x-request-id": "counted"})
        run.task("counted")
        assert client.get("/health").json() == {"status": "ok", "nodes": 2}
        lines = client.get("/metrics").text.splitlines()
    assert lines.count("# TYPE vllm:x gauge") == 1
    assert {'vllm:x{node="0",engine="0"} 0.5', 'vllm:x{node="1",engine="0"} 1.5'} <= set(lines)
    assert {'lemix_node_up{node="0"} 1', 'lemix_node_up{node="1"} 1', "lemix_training_loss 2.5"} <= set(lines)
    figures = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert int(figures['lemix_requests_total{outcome="finished"}']) > 0
    assert int(figures["lemix_training_steps_total"]) > 0
    assert int(figures['lemix_weight_version{node="0"}']) > 0


def test_progress_tells_the_address(run: Open) -> None:
    assert json.loads((run.path / "progress.json").read_text())["address"] == run.url


def test_a_port_that_is_taken_is_told_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with started(recipe_of({"port": port}), tmp_path) as process:
            assert process.wait(60) != 0
    log = (tmp_path / "log").read_text()
    assert f"cannot listen on 127.0.0.1, port {port} (Address already in use)" in log
    assert not (tmp_path / "coefficients.yaml").exists()


def test_a_crowd_with_few_descriptors_ends_nothing_and_term_serves_who_is_inside(tmp_path: Path) -> None:
    recipe = recipe_of({"host": "0.0.0.0", "api_key": None})
    del recipe["training"]
    with opened(recipe, tmp_path, files=256) as run, run.client(None) as client, contextlib.ExitStack() as idle:
        key_file = tmp_path / "api_key"
        assert complete(client).status_code == 401 and f"keys of the API: {key_file}\n" in run.log
        key = key_file.read_text().strip()
        assert key not in run.log
        client.headers["authorization"] = f"Bearer {key}"
        url = f"http://127.0.0.1:{run.url.rsplit(':', 1)[1]}"
        limit = Path(f"/proc/{run.pid}/limits").read_text()
        assert re.search(r"Max open files +256 +256", limit)
        for _ in range(300):
            idle.enter_context(socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))))
        assert [complete(client_of(url, key)).status_code for _ in range(40)] == [200] * 40
        shown = run.progress["elapsed_s"]
        assert run.until(lambda: run.progress["elapsed_s"] > shown), "it can still be written"
        with client.stream("POST", f"{url}/v1/completions", json={"prompt": "stall", "stream": True}) as answer:
            pieces = answer.iter_raw()
            next(pieces)
            sample = client.post(f"{url}/v1/training/samples", json={"text": "x"})
            assert sample.status_code == 400 and "does not train" in sample.json()["error"]["message"]
            closing = threading.Thread(target=run.close)
            closing.start()
            refused = run.until(lambda: (r := complete(client_of(url, key))).status_code == 503 and r)
            assert int(refused.headers["retry-after"]) > 0
            assert client_of(url, key).get("/health").status_code == 503
            rest = b"".join(pieces)
        closing.join()
    assert b"did not answer within" in rest, "the stalled answer was waited for until its time was over"
    assert run.process.returncode == 0
    assert json.loads((tmp_path / "progress.json").read_text())["state"] == "finished"
    assert (tmp_path / "facts.json").exists()
    told = [file for file in tmp_path.rglob("*") if file.is_file() and key.encode() in file.read_bytes()]
    assert told == [key_file], "records, journal and logs know nothing of it"


def client_of(url: str, key: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30)


def test_it_ends_by_itself_when_its_time_is_over(tmp_path: Path) -> None:
    with opened(recipe_of({"duration_s": 2.0}), tmp_path) as run, run.client() as client:
        complete(client, headers={"x-request-id": "in time"})
        assert run.process.wait(60) == 0
    assert [task["id"] for task in run.lines("tasks.jsonl") if task["kind"] == "serving"] == ["in time"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{run.url}/health")


def test_the_policy_refuses_what_would_outlive_the_allocation(tmp_path: Path) -> None:
    recipe = recipe_of(
        cluster={"time": "00:02:00"},
        model={"config": tiny_llama(2, max_position_embeddings=4096)},
        policy={"placement": "round-robin", "drain_reserve_s": 110.0, "output_lengths": "oracle"},
    )
    with opened(recipe, tmp_path) as run, run.client() as client:
        answer = complete(client, max_tokens=4000, headers={"x-request-id": "long"})
        assert complete(client).status_code == 200
        assert run.task("long")["outcome"] == "rejected"
        assert run.process.wait(60) == 0, "it ends before the reserve begins, without a duration of its own"
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
