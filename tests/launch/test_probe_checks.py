"""What the doctor says of what ranks would find."""

from collections.abc import Mapping

import msgspec
import pytest

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.launch.check import Check
from lemix_hpc.launch.probe_checks import probe_checks, settings
from lemix_hpc.launch.probe_job import Probed
from lemix_hpc.probe.findings import DONE, DirectoryTimes, Findings, Link, RankFacts

A100 = {"model": "A100", "driver": "580.1", "cuda": "13.0", "device_memory": 80 << 30}
RECIPE = Recipe.model_validate({"engine": {"kind": "torch"}, "model": {"config": {"model_type": "llama"}}})


def rank(number: int, **changes: object) -> RankFacts:
    role = "node 0, " + ("leader" if number == 0 else f"stage {number - 1}")
    stage = {"device": f"cuda:{number - 1}", "gpu": f"gpu-{number}", **A100} if number else {}
    facts = RankFacts(
        rank=number,
        role=role,
        host="a",
        python="3.12.1",
        packages={"torch": "2.13.0"},
        cores=[number],
        numa_nodes=[0],
        host_memory=1 << 38,
        shared_memory=1 << 35,
        clock_off_s=0.0,
    )
    return msgspec.structs.replace(facts, **(stage | changes))


SOUND = Findings(
    DONE,
    ranks=[rank(0), rank(1), rank(2)],
    links=[Link((0, 1), True, 2e-6, 8e9), Link((1, 2), True, 3e-6, 9e9)],
    directory=[DirectoryTimes("a", 0.002, 0.01, 0.0)],
    by_device="",
    nccl=[Link((1, 2), True, 10e-6, 200e9)],
)


def told(changes: Mapping[str, object], recipe: Recipe = RECIPE) -> list[Check]:
    return list(probe_checks(Probed(msgspec.structs.replace(SOUND, **changes)), recipe))


def test_of_a_sound_place_all_is_told_and_what_to_set() -> None:
    checks = told({})
    assert {check.verdict for check in checks} == {"ok"}
    assert settings(checks) == ["engine.device_buffers=mpi"]
    assert settings(told({"by_ipc": ""})) == ["engine.device_buffers=ipc"]
    assert settings(told({"by_ipc": "no", "by_device": "no"})) == ["engine.device_buffers=off"]
    by_ipc = {told_of: told({"by_ipc": told_of}) for told_of in ("", "no")}
    assert [check.text for checks in by_ipc.values() for check in checks if check.name == "GPU memory by CUDA IPC"] == [
        "is read by the other stages of a node",
        "is not read: no",
    ]
    texts = {check.name: check.text for check in checks}
    assert texts["ranks"] == "3 ranks on 1 host met"
    assert texts["devices in a job"] == "2 x A100, at least 85.9 GB free, driver 580.1, torch with CUDA 13.0"
    assert texts["messages within a host"] == "at most 3 us one way (ranks 1 and 2), at least 8.0 GB/s"
    assert texts["NCCL"] == "at most 10 us one way between stages, at least 200.0 GB/s"


@pytest.mark.parametrize(
    ("changes", "name", "verdict", "text"),
    [
        (
            {"ranks": [rank(0), rank(1, packages={"torch": "2.1"})]},
            "software in a job",
            "fail",
            "torch is not the same on a",
        ),
        (
            {"ranks": [rank(0), rank(1, device=None, gpu=None, fault="no GPU")]},
            "devices in a job",
            "fail",
            "on a: no GPU",
        ),
        (
            {"ranks": [rank(0), rank(1), rank(2, gpu="gpu-1")]},
            "devices in a job",
            "fail",
            "2 stages have 1 GPU; ask for",
        ),
        ({"ranks": [rank(0), rank(1, driver="550.1")]}, "devices in a job", "fail", "needs driver 580 or newer"),
        ({"ranks": [rank(0), rank(1, far_cores=1)]}, "cores", "warn", "(node 0, stage 0) on a has none near its GPU"),
        ({"ranks": [rank(0), rank(1, cores=[0])]}, "cores", "warn", "2 ranks share 1 core on a"),
        ({"ranks": [rank(0, shared_memory=1 << 20)]}, "/dev/shm", "warn", "its 1 ranks may want 0.1"),
        ({"ranks": [rank(0), rank(1, clock_off_s=-3.0)]}, "clocks", "warn", "by at most 3000.0 ms, on a"),
        ({"links": [Link((0, 1), True, 3e-4, 1e9)]}, "messages within a host", "warn", "ranks may share cores"),
        ({"links": [Link((0, 3), False, 3e-3, 1e9)]}, "messages between hosts", "warn", "slow network"),
        ({"directory": [DirectoryTimes("a", 0.2, 1.0, 0.0)]}, "run directory in a job", "warn", "faster file system"),
        ({"directory": [DirectoryTimes("b", 0.0, 0.0, None)]}, "run directory in a job", "fail", "b does not see"),
        ({"nccl": [], "nccl_fault": "rank 1: no"}, "NCCL", "warn", "rank 1: no"),
        (
            {"by_device": "this MPI does not say that it can"},
            "GPU memory by MPI",
            "ok",
            "is not sent as it is: this MPI",
        ),
        ({"sums_fault": "nodes cannot sum"}, "sums over nodes", "ok", "by messages; nodes cannot sum"),
        ({"phase": "the run directory"}, "ranks", "fail", "did not get past this: the run directory"),
    ],
)
def test_what_is_wrong_is_named_with_a_way_out(changes: dict[str, object], name: str, verdict: str, text: str) -> None:
    [check] = [
        check for check in told(changes) if check.name == name and check.verdict == verdict and text in check.text
    ]
    assert check.text


def test_what_a_recipe_wants_of_its_place() -> None:
    on_cpus = {"ranks": [rank(0), rank(1, device="cpu", gpu=None)]}
    assert [check.text for check in told(on_cpus) if check.name == "devices in a job"] == ["1 stage on CPUs"]
    asks = RECIPE.model_copy(update={"cluster": RECIPE.cluster.model_copy(update={"gpus_per_node": 1})})
    [none] = [check for check in told(on_cpus, asks) if check.name == "devices in a job"]
    assert none.verdict == "fail" and "torch 2.13.0 sees no GPU on a, which the job has" in none.text
    vllm = RECIPE.model_copy(update={"engine": RECIPE.engine.model_copy(update={"kind": "vllm"})})
    checks = told({}, vllm)
    assert any(check.name == "software in a job" and "there is no vLLM" in check.text for check in checks)
    assert "cluster.cpus_per_task=4" in settings(checks)


def test_sums_over_nodes_are_by_what_works() -> None:
    sets = settings(told({"sums": 20e9}))
    assert "training.sums=collective" in sets
    training = {"data": {"path": __file__}, "across_nodes": "sync", "sums": "collective"}
    wants = Recipe.model_validate(RECIPE.model_dump() | {"training": training})
    [check] = [check for check in told({"sums_fault": "no route"}, wants) if check.name == "sums over nodes"]
    assert (check.verdict, check.text, check.settings) == ("fail", "no route", ("training.sums=messages",))


def test_ranks_that_did_not_start_are_told_with_their_last_words() -> None:
    [check] = probe_checks(Probed(None, "srun: error: no such plugin"), RECIPE)
    assert (check.verdict, check.text) == ("fail", "they did not start: srun: error: no such plugin")
