"""Keys while a run serves, over a real socket in this process."""

import stat
from pathlib import Path

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.records.key_file import KEY_FILE, VARIABLE, keep_key
from lemix_hpc.runtime.http.errors import ApiError
from lemix_hpc.runtime.http.keys import KeyRing
from tests.runtime.http.in_process import key_file, post, running

SEVERAL = """
keys:
  - {name: alice, key: one-secret}
  - {name: bob, key: other-secret, rights: [train, metrics]}
  - {name: eve, key: third-secret, tokens_per_min: 30}
"""


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def ring(tmp_path: Path, content: str) -> tuple[KeyRing, Clock]:
    clock = Clock()
    return KeyRing(key_file(tmp_path, content), clock), clock


def test_requests_flow_in_at_their_rate(tmp_path: Path) -> None:
    keys, clock = ring(tmp_path, "keys:\n  - {name: a, key: x, requests_per_s: 2}\n")
    key = keys.find(b"x")
    assert key is not None
    for _ in range(2):
        keys.take_request(key)
    with pytest.raises(ApiError, match="'a' has reached its limit of 2 requests per second") as refused:
        keys.take_request(key)
    assert (refused.value.status, dict(refused.value.headers)["retry-after"], keys.refused) == (429, "1", {429: 1})
    clock.time = 0.5
    keys.take_request(key)
    with pytest.raises(ApiError):
        keys.take_request(key)


def test_tokens_count_what_may_come_and_one_large_call_is_let_in_when_nothing_was_asked_for(tmp_path: Path) -> None:
    keys, clock = ring(tmp_path, "keys:\n  - {name: a, key: x, tokens_per_min: 60}\n")
    key = keys.find(b"x")
    assert key is not None
    keys.take_tokens(key, (100, 80))
    clock.time = 179.0
    with pytest.raises(ApiError, match="60 tokens per minute") as refused:
        keys.take_tokens(key, (60, 100))
    assert dict(refused.value.headers)["retry-after"] == "1"
    clock.time = 180.0
    keys.take_tokens(key, (60, 100))


def test_keys_are_read_again_when_their_file_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys, clock = ring(tmp_path, "keys:\n  - {name: a, key: x, requests_per_s: 1}\n")
    key = keys.find(b"x")
    assert key is not None
    keys.take_request(key)
    key_file(tmp_path, "keys:\n  - {name: a, key: new, requests_per_s: 1}\n  - {name: b, key: y}\n")
    assert keys.find(b"new") is None, "the file is not looked at for every call"
    clock.time = 1.0
    assert keys.find(b"x") is None and keys.find(b"y") is not None
    clock.time = 1.1
    again = keys.find(b"new")
    assert again is not None
    with pytest.raises(ApiError):
        keys.take_request(again)  # nothing has flowed in since the file was read
    key_file(tmp_path, "keys:\n")
    clock.time = 3.0
    assert keys.find(b"y") is not None, "a file that is wrong changes nothing"
    (tmp_path / "keys").unlink()
    clock.time = 5.0
    assert keys.find(b"y") is not None
    told = capsys.readouterr().out
    assert "keys read again: a, b" in told and told.count("the keys stay as they were") == 2
    with pytest.raises(UserError):
        KeyRing(tmp_path / "keys")


def test_rights_and_uses(tmp_path: Path) -> None:  # noqa: ARG001
    with running(keys=SEVERAL) as run, run.client("one-secret") as alice, run.client("other-secret") as bob:
        assert (post(alice).status_code, post(bob).status_code) == (200, 403)
        assert "no right to 'serve'" in post(bob).json()["error"]["message"]
        assert bob.get("/metrics").status_code == 200
        samples = bob.post("/v1/training/samples", json={"text": "a"})
        assert samples.status_code == 400 and "does not train" in samples.text
        with run.client("third-secret") as eve:
            assert [post(eve, max_tokens=20).status_code for _ in range(2)] == [200, 429]
        with run.client(None) as nobody, run.client("wrong") as wrong, run.client("one-secret2") as longer:
            assert [post(client).status_code for client in (nobody, wrong, longer)] == [401, 401, 401]
        lines = bob.get("/metrics").text.splitlines()
        assert 'lemix_http_refused_total{status="401"} 3' in lines
        assert 'lemix_http_refused_total{status="403"} 2' in lines
        assert 'lemix_http_refused_total{status="429"} 1' in lines
    assert [call.api.key for call in run.calls if call.lengths] == ["alice", "eve"]


@pytest.mark.parametrize("sent", ["one-secret", "  one-secret"])
def test_blanks_around_a_key_do_not_matter(sent: str) -> None:
    with running(keys="\n one-secret \n") as run, run.client(None) as client:
        answer = client.post("/v1/completions", json={"prompt": "hi"}, headers={"authorization": f"Bearer {sent}"})
        assert answer.status_code == 200


def test_clients_with_the_same_id_are_told_apart() -> None:
    with running(keys=SEVERAL, taken={"line0", "alice/line1"}) as run, run.client("one-secret") as alice:
        with run.client("third-secret") as eve:
            answers = [post(client, "mine", prompt) for client, prompt in ((alice, "hi"), (eve, "you"))]
            assert [answer.status_code for answer in answers] == [200, 200]
        assert [call.id for call in run.calls] == ["alice/mine", "eve/mine"]
        assert post(alice, "line1").status_code == 422, "a request of the recipe has this id"
        assert post(alice, "line0").status_code == 200


def test_the_key_of_a_run_is_for_its_owner_alone_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    path = keep_key(tmp_path, None)
    made = path.read_text()
    assert path == tmp_path / KEY_FILE and len(made.strip()) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keep_key(tmp_path, "another").read_text() == made, "also in later attempts"
    (tmp_path / "given").mkdir()
    assert keep_key(tmp_path / "given", "mine").read_text() == "mine\n"
    (tmp_path / "environment").mkdir()
    monkeypatch.setenv(VARIABLE, " theirs ")
    assert keep_key(tmp_path / "environment", None).read_text() == "theirs\n"
    (tmp_path / "odd").mkdir()
    monkeypatch.setenv(VARIABLE, "a\nb")
    with pytest.raises(UserError, match="LEMIX_API_KEY: a key is one line of printable characters"):
        keep_key(tmp_path / "odd", None)
    assert list((tmp_path / "odd").iterdir()) == []
