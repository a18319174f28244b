"""A node that is slower than it is taken for, in a whole cluster: requests go elsewhere once that is known."""

import numpy as np
import pytest

from lemix_hpc.policy.latency import Affine, LatencyModel
from lemix_hpc.policy.latency_tables import make_times
from lemix_hpc.policy.rules import SchedulerConfig
from lemix_hpc.policy.scheduler import Scheduler
from lemix_hpc.simulator.cluster_state import make_requests
from lemix_hpc.simulator.simulator import run_simulation
from tests.simulator.cluster import CLUSTER

NODES, SLOW, FACTOR = 4, 2, 2.0
EVERY_S = 0.007
COUNT = 30_000


@pytest.mark.parametrize("recalibrate", [True, False])
def test_a_slow_node_is_named_and_gets_less(recalibrate: bool) -> None:
    fast = Affine(20e-3, 1e-5, 0.0)
    models = [LatencyModel((form,) * 2, (form,) * 2) for form in (fast, fast.scaled(FACTOR))]
    given = SchedulerConfig(NODES, placement="least-completion", order="fcfs", t0=0.04, recalibrate=recalibrate)
    scheduler = Scheduler(given, models[0])
    config = CLUSTER._replace(nodes=NODES, max_requests=1, measures=True, seed=1, latency_error=0.1)
    arrivals = [EVERY_S * number for number in range(COUNT)]
    requests = make_requests(arrivals, [200] * COUNT, [0] * COUNT)
    kinds = np.array([int(node == SLOW) for node in range(NODES)])
    cluster, _ = run_simulation(scheduler, config, make_times(models, kinds), requests)
    named = {(straggler.node, straggler.stage) for straggler in scheduler.stragglers}
    assert named == {(SLOW, 0), (SLOW, 1)}
    for straggler in scheduler.stragglers:
        assert straggler.ratio == pytest.approx(FACTOR, rel=0.15)
        assert 60 < straggler.since_s + 60 < COUNT * EVERY_S / 2
    served = cluster.requests[COUNT // 2 :]
    there = served["node"] == SLOW
    errors = np.abs(served["predicted"] - (served["finished"] - served["arrival"]))
    assert scheduler.memory.apart == ((SLOW,) if recalibrate else ())
    if recalibrate:
        assert there.mean() < 0.1
        assert errors[there].mean() < 0.02
    else:
        assert there.mean() > 0.12, "forecasts keep to the file, and know no better"
