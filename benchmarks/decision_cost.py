"""What one decision of the scheduler costs, by the number of nodes and by how many requests wait on each.

    python benchmarks/decision_cost.py
    python benchmarks/decision_cost.py --nodes 64 --waiting 1 10 100
    python benchmarks/decision_cost.py --generate --placement fill

Nodes of 8 stages run what they are given exactly as forecast, and report every pass. A decision is one request that
arrives: forecasts on every node, the placement, and the whole update of the state. Reports are timed apart. With `--generate`
requests ask for 128 tokens, and decode is paced to 50 ms. Times are those of the processor, whatever else runs on it.
"""

from __future__ import annotations

import argparse
import heapq
import time
from dataclasses import dataclass, field

import numpy as np

from lemix_hpc.policy.events import Event, RequestArrived, StageFinished, TaskFinished
from lemix_hpc.policy.latency import Affine, LatencyModel
from lemix_hpc.policy.placements import DEFAULT, PLACEMENTS
from lemix_hpc.policy.rules import SchedulerConfig
from lemix_hpc.policy.scheduler import Scheduler
from lemix_hpc.policy.task_slots import slot_of

STAGES = 8
LONGEST = 4096
OUTPUT = 128


def node_times() -> LatencyModel:
    """Llama-2-7B on A100s, a pipeline of 8 stages."""
    forward = Affine(0.765e-3, 6.70e-6, 0.947e-9)
    return LatencyModel((forward,) * STAGES, (forward.scaled(2.0),) * STAGES)


@dataclass
class Cluster:
    """Nodes that do what the forecast says. `seconds`: processor time of every call, by what it was for."""

    scheduler: Scheduler
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"decision": [], "report": []})
    ends: list[tuple[float, int, int, int]] = field(default_factory=list)

    def tell(self, event: Event, kind: str) -> None:
        start = time.thread_time()
        decisions = self.scheduler.handle(event)
        self.seconds[kind].append(time.thread_time() - start)
        for decision in decisions:
            self._expect(decision.task, 0)

    def _expect(self, task: int, position: int) -> None:
        """Wait for a task's next pass: forwards on stages 0, 1, ..., then for training backwards on stages S-1, S-2, ..."""
        state = self.scheduler.state
        slot = slot_of(state, task)
        passes = STAGES * (2 if state.slots[slot]["training"] else 1)
        if position < passes:
            heapq.heappush(self.ends, (self._end(slot, position), task, position, passes))

    def _end(self, slot: int, position: int) -> float:
        path = self.scheduler.state.paths[slot]
        return float(path["fe"][position] if position < STAGES else path["be"][2 * STAGES - 1 - position])

    def run_until(self, now: float) -> None:
        """Report every pass that has ended by then."""
        state = self.scheduler.state
        while self.ends and self.ends[0][0] <= now:
            _, task, position, passes = heapq.heappop(self.ends)
            slot = slot_of(state, task)
            end = self._end(slot, position)
            if end > now:
                self._expect(task, position)
                continue
            node, backward = int(state.slots[slot]["node"]), position >= STAGES
            stage = 2 * STAGES - 1 - position if backward else position
            begin = float(state.paths[slot, stage]["bb" if backward else "fb"])
            self.tell(StageFinished(end, node, stage, task, begin, end, backward), "report")
            if position == passes - 1:
                self.tell(TaskFinished(end, node, task), "report")
            else:
                self._expect(task, position + 1)


def measure(
    nodes: int, waiting: int, decisions: int, placement: str, output: int = 0, seed: int = 0
) -> tuple[dict[str, list[float]], float]:
    """Times of calls once every node has about so many requests, and how many there were on average."""
    rng = np.random.default_rng(seed)
    model = node_times()
    prompts = rng.integers(1, LONGEST, size=nodes * waiting + decisions).tolist()
    longest_stage = float(np.mean([model.request_times(prompt, output)[0] for prompt in prompts[:1000]]))
    config = SchedulerConfig(
        nodes,
        placement,
        t0=STAGES * longest_stage,
        recalibrate=False,
        training_nodes=max(1, nodes // 4),
        order="fcfs",
        tpot=0.05 if output else 0.0,
    )
    cluster = Cluster(Scheduler(config, model))
    for prompt in prompts[: nodes * waiting]:
        cluster.tell(RequestArrived(0.0, len(cluster.seconds["decision"]), prompt, output), "decision")
    first, now = nodes * waiting, 0.0
    for number, prompt in enumerate(prompts[first:], start=first):
        # As fast as the stages work, so that queues stay as long as they are.
        now += longest_stage / nodes
        cluster.run_until(now)
        cluster.tell(RequestArrived(now, number, prompt, output), "decision")
    queued = float(cluster.scheduler.state.nodes["requests"].mean())
    return {kind: seconds[first:] for kind, seconds in cluster.seconds.items()}, queued


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[4, 64, 1024, 4096])
    parser.add_argument("--waiting", type=int, nargs="+", default=[10], help="requests on every node")
    parser.add_argument("--decisions", type=int, default=4000, help="at least, and at least 12 for every node")
    parser.add_argument("--placement", default=DEFAULT, choices=PLACEMENTS)
    parser.add_argument("--generate", action="store_true", help=f"requests ask for {OUTPUT} tokens, paced")
    args = parser.parse_args()
    output = OUTPUT if args.generate else 0
    measure(4, 1, 50, args.placement, output)  # compile first
    print(f"{args.placement}, {STAGES} stages a node, {output} tokens asked for; microseconds")
    print(
        f"{'nodes':>6} {'waiting':>8} {'decision p50':>13} {'p99':>7} {'report p50':>11} {'p99':>7} {'per request':>12}"
    )
    for nodes in args.nodes:
        for waiting in args.waiting:
            seconds, queued = measure(nodes, waiting, max(args.decisions, 12 * nodes), args.placement, output)
            decision, report = (1e6 * np.array(seconds[kind]) for kind in ("decision", "report"))
            reports = report if report.size else np.zeros(1)
            print(
                f"{nodes:>6} {queued:>8.1f} {np.median(decision):>13.1f} {np.percentile(decision, 99):>7.1f}"
                f" {np.median(reports):>11.1f} {np.percentile(reports, 99):>7.1f}"
                f" {(decision.sum() + report.sum()) / decision.size:>12.1f}"
            )


if __name__ == "__main__":
    main()
