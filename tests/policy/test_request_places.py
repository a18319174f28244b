"""Where a request would run among others: what a walk along all of them says, whatever was kept of earlier ones."""

from typing import get_args

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.policy.latency import Affine, LatencyModel
from lemix_hpc.policy.request_places import place_of_request
from lemix_hpc.policy.rules import OrderName, SchedulerConfig
from lemix_hpc.policy.state import MOST_SEEN, NONE, SEEN, State
from tests.policy.mirror import Arrive, Finish, Mirror, Offer, Report, Step


def by_walking(state: State, node: int, key: float, now: float) -> int:
    """Behind the last request that has begun, is expected to, or has a key that is not larger."""
    slot = int(state.nodes[node]["last_request"])
    while slot != NONE:
        first_stage = state.paths[slot, 0]
        if state.slots[slot]["key"] <= key or first_stage["fb"] <= now or first_stage["ran"]:
            break
        slot = int(state.slots[slot]["previous"])
    return slot


gap = st.sampled_from([0.0, 0.0, 0.1, 0.7, 2.5])
arrivals = st.builds(Arrive, gap, st.integers(1, 300), st.sampled_from([0, 1, 9]))
steps: st.SearchStrategy[Step] = st.one_of(
    arrivals,
    arrivals,
    arrivals,
    st.builds(Offer, gap, st.just(1), st.lists(st.integers(1, 300), min_size=1, max_size=3).map(tuple)),
    st.builds(Report, gap, st.sampled_from([0, 0, 0, 1, 2]), st.sampled_from([0.0, 0.3]), st.floats(0.5, 2.0)),
    st.builds(Finish, gap, st.integers(0, 99)),
)
configs = st.builds(
    SchedulerConfig,
    nodes=st.integers(1, 3),
    placement=st.sampled_from(["least-completion", "round-robin"]),
    order=st.sampled_from(get_args(OrderName)),
    t0=st.sampled_from([0.1, 2.0]),
)
queries = st.lists(st.tuples(st.floats(-5.0, 50.0), st.sampled_from([0.0, 0.0, 0.2, 3.0])), min_size=1, max_size=4)


@given(configs, st.sampled_from([1, 3, MOST_SEEN]), st.lists(st.tuples(steps, queries), min_size=10, max_size=30))
def test_a_place_is_that_of_a_walk(
    config: SchedulerConfig, most: int, story: list[tuple[Step, list[tuple[float, float]]]]
) -> None:
    """Keys go up and down between two changes, time goes on, and of long queues only a part is kept."""
    form = (Affine(1.3, 0.05, 1e-3),) * 2
    mirror = Mirror(config, LatencyModel(form, form))
    scheduler = mirror.scheduler
    scheduler.state = scheduler.state._replace(seen=np.zeros((config.nodes, most), SEEN))
    for step, asked in story:
        mirror.take(step)
        for above, later in asked:
            mirror.now += later
            for node in range(config.nodes):
                key, state = mirror.now + above, scheduler.state
                assert place_of_request(state, node, key, mirror.now, True) == by_walking(state, node, key, mirror.now)
