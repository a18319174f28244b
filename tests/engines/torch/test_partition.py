from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.config.errors import UserError
from lemix_hpc.config.recipe import Model
from lemix_hpc.engines.model_sizes import describe
from lemix_hpc.engines.torch.partition import balanced, layer_ranges


def test_equal_layers_without_a_head() -> None:
    assert balanced([1.0] * 8, 0.0, 4) == [range(0, 2), range(2, 4), range(4, 6), range(6, 8)]


def test_the_last_stage_gets_fewer_layers_for_a_heavy_head() -> None:
    assert [len(layers) for layers in balanced([1.0] * 9, 3.0, 2)] == [6, 3]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 20), st.data())
def test_no_other_cut_has_a_smaller_largest_stage(costs: list[int], head: int, data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, len(costs)))
    found = balanced(costs, head, stages)
    assert [layer for layers in found for layer in layers] == list(range(len(costs)))
    assert all(found)

    def largest(ranges: list[range]) -> float:
        return max(sum(costs[i] for i in r) + (head if r.stop == len(costs) else 0) for r in ranges)

    every = (
        [range(a, b) for a, b in pairwise((0, *cuts, len(costs)))]
        for cuts in combinations(range(1, len(costs)), stages - 1)
    )
    assert largest(found) == min(map(largest, every))


def test_too_many_stages() -> None:
    sizes = describe(Model(config={"model_type": "gpt2", "n_layer": 2}))
    with pytest.raises(UserError, match=r"nodes\.stages is 3, but the model has only 2 decoder layers"):
        layer_ranges(sizes, 3)


def test_a_real_model() -> None:
    """Qwen2-0.5B: the head weighs as much as nine layers."""
    sizes = describe(
        Model(
            config={
                "model_type": "qwen2",
                "hidden_size": 896,
                "intermediate_size": 4864,
                "num_hidden_layers": 24,
                "num_attention_heads": 14,
                "num_key_value_heads": 2,
                "vocab_size": 151936,
            }
        )
    )
    assert [len(layers) for layers in layer_ranges(sizes, 2)] == [17, 7]
