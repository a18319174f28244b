import os

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.probe.rank_facts import facts_of_rank, numa_nodes

MODEL = {"config": {"model_type": "llama"}}


def recipe(**engine: str) -> Recipe:
    return Recipe.model_validate({"model": MODEL, "engine": {"kind": "torch", **engine}})


def test_a_stage_on_the_cpu_tells_its_place() -> None:
    facts = facts_of_rank(recipe(device="cpu"), 1, "node 0, stage 0", 0, 0.0)
    assert (facts.device, facts.gpu, facts.fault) == ("cpu", None, None)
    assert facts.cores == sorted(os.sched_getaffinity(0)) and "torch" in facts.packages
    assert facts.host_memory > 1 << 28 and facts.numa_nodes == numa_nodes(set(facts.cores))


def test_a_gpu_that_is_not_there_is_a_fault_and_ends_nothing() -> None:
    facts = facts_of_rank(recipe(device="cuda"), 1, "node 0, stage 0", 0, 0.0)
    assert facts.device is None and "no GPU is visible" in (facts.fault or "")
