from collections.abc import Sequence
from pathlib import Path

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.load import load_recipe
from lemix_hpc.config.recipe import Recipe


def load(tmp_path: Path, text: str, overrides: Sequence[str] = ()) -> Recipe:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return load_recipe(path, overrides)


CASES = {
    "unknown policy": ("policy: {placement: lemixx}", "policy.placement: ", ["'lemix'", "'least-utilised'"]),
    "tau without keep": ("policy: {placement: lemix, tau: 1}", "policy: ", ["`tau`", "give `keep` too"]),
    "keep without tau": ("policy: {placement: lemix, keep: 1}", "policy: ", ["`keep`", "give `tau` too"]),
    "negative hold": ("policy: {max_hold_s: -1}", "policy.max_hold_s: ", ["greater than or equal to 0"]),
    "negative weight": ("policy: {lambda1: -0.1}", "policy.lambda1: ", ["greater than or equal to 0"]),
    "whole share": ("policy: {minimum_training_share: 1.0}", "policy.minimum_training_share: ", ["less than 1"]),
    "no nodes": ("policy: {training_nodes: 0}", "policy.training_nodes: ", ["above 0, or auto"]),
    "other word": ("policy: {training_nodes: all}", "policy.training_nodes: ", ["above 0, or auto; found 'all'"]),
    "kinds do not add up": ("nodes: {count: 3, kinds: [{count: 1}]}", "nodes: ", ["add up to 1, and `count` is 3"]),
    "unknown key of a kind": (
        "nodes: {count: 1, kinds: [{count: 1, memory: 3}]}",
        "nodes.kinds.0.memory: ",
        ["did you mean 'memory_gb'?", "valid: count, coefficients, memory_gb"],
    ),
}


@pytest.mark.parametrize(("text", "key", "told"), CASES.values(), ids=CASES.keys())
def test_mistake_is_told_once(tmp_path: Path, text: str, key: str, told: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, text)
    [line] = str(error.value).splitlines()
    assert key in line
    assert all(part in line for part in told)


def test_thresholds_go_together_only_for_lemix(tmp_path: Path) -> None:
    assert load(tmp_path, "policy: {placement: lemix-paper, tau: 0.3}").policy.knobs["tau"] == 0.3
    assert load(tmp_path, "policy: {placement: lemix, tau: 1.0, keep: 3.0}").policy.knobs["keep"] == 3.0


def test_paths_of_kinds_are_taken_from_the_recipe(tmp_path: Path) -> None:
    recipe = load(tmp_path, "nodes: {count: 1, kinds: [{count: 1, coefficients: c.yaml}]}")
    assert recipe.nodes.kinds is not None and recipe.nodes.kinds[0].coefficients == tmp_path / "c.yaml"
