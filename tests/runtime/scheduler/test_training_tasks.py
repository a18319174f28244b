"""Groups of training from their offer to their records, without a policy and without ranks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from lemix_hpc.config.training_section import Training
from lemix_hpc.policy.events import GroupOffered, Place, TrainingClosed
from lemix_hpc.records.journal import GroupCut
from lemix_hpc.records.schema import Progress, TrainedTask
from lemix_hpc.records.writer import Recorder
from lemix_hpc.run_setup.training_feed import TrainingFeed
from lemix_hpc.runtime.scheduler import task_table
from lemix_hpc.runtime.scheduler.sync_steps import StepsTogether
from lemix_hpc.runtime.scheduler.task_table import TaskNames
from lemix_hpc.runtime.scheduler.training_tasks import NO_PLACES, TrainingTasks
from lemix_hpc.runtime.transport.messages import StepTogether
from lemix_hpc.workload.samples import Sample, SampleQueue
from lemix_hpc.workload.texts import Document
from lemix_hpc.workload.tokenizer import ByteTokenizer
from lemix_hpc.workload.training import stream


class Bench:
    """Training tasks and what is around them. Micro-batches are numbered from 0, and called t0, t1, ... ."""

    def __init__(self, run_dir: Path) -> None:
        self._dir = run_dir
        self.recorder = Recorder(run_dir)
        self.names = TaskNames()

    def tasks(
        self,
        total: int | None,
        per_group: int = 1,
        *,
        samples: SampleQueue | None = None,
        together: StepsTogether | None = None,
        cuts: Sequence[GroupCut] = (),
        done: Iterable[int] = (),
        places: Mapping[int, int] = NO_PLACES,
    ) -> TrainingTasks:
        """Training on the recipe's text, or on what clients send where they do."""
        text = stream(Training(micro_batch_size=2, sequence_length=4), None, 0) if samples is None else None
        number = itertools.count().__next__
        feed = TrainingFeed(text, per_group=per_group, total=total, number=number, samples=samples)
        feed.go_on(cuts, done)
        return TrainingTasks(feed, self.names, self.recorder, together, places=places)

    def records(self) -> list[TrainedTask]:
        self.recorder.progress(Progress("running"))  # writes down what is kept back
        lines = (self._dir / "tasks.jsonl").read_bytes().splitlines()
        return [msgspec.json.decode(line, type=TrainedTask) for line in lines]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.recorder.close()


def place(task: int, node: int = 0, eligible: float = 0.0) -> Place:
    return Place(task, node, eligible, 1.0, 0.0)


def offered(tasks: TrainingTasks, *, ahead: int = 9, served: bool = False) -> list[int]:
    """Numbers of the groups that are offered now."""
    groups = []
    while isinstance(event := tasks.supply(0.0, ahead=ahead, served=served), GroupOffered):
        groups.append(event.group)
    return groups


def test_without_a_feed_there_is_nothing_to_do(bench: Bench) -> None:
    tasks = TrainingTasks(None, bench.names, bench.recorder)
    assert tasks.finished and (tasks.total, tasks.samples_waiting) == (0, 0)
    assert tasks.supply(1.0, ahead=4, served=True) is None and tasks.orders() == {}


def test_a_group_is_offered_as_a_whole_and_named(bench: Bench) -> None:
    tasks = bench.tasks(5, per_group=3)
    assert tasks.supply(2.5, ahead=1, served=False) == GroupOffered(2.5, 0, (0, 1, 2), 2, (4, 4, 4))
    assert dict(bench.names) == {0: "t0", 1: "t1", 2: "t2"}
    assert tasks.supply(2.5, ahead=1, served=False) is None, "one waits for the policy"
    tasks.place(place(0), 3.0)
    assert tasks.supply(4.0, ahead=1, served=False) == GroupOffered(4.0, 1, (3, 4), 2, (4, 4)), "what is left of five"


def test_training_of_an_amount_is_over_when_all_of_it_is_recorded(bench: Bench) -> None:
    tasks = bench.tasks(1)
    assert offered(tasks) == [0]
    tasks.place(place(0), 1.0)
    assert tasks.supply(1.0, ahead=9, served=True) is None and not tasks.finished
    tasks.learned(0, 2.5)
    tasks.ended(0, 6.0)
    assert not tasks.finished and tasks.trained == 0
    tasks.stepped(0, 0, 1, 9.0)
    assert tasks.finished and (tasks.trained, tasks.steps, tasks.skipped, tasks.total) == (1, 1, 0, 1)


def test_steps_that_change_nothing_are_counted_and_written_down(bench: Bench) -> None:
    tasks = bench.tasks(1)
    offered(tasks)
    tasks.place(place(0), 1.0)
    tasks.stepped(0, 0, 1, 9.0, skipped=True)
    assert (tasks.steps, tasks.skipped) == (1, 1)


@pytest.mark.parametrize("order", list(itertools.permutations(["loss", "end", "step"])))
def test_a_group_is_recorded_whatever_comes_last(bench: Bench, order: tuple[str, ...]) -> None:
    tasks = bench.tasks(2, per_group=2)
    offered(tasks)
    for number in range(2):
        tasks.place(place(number, node=1, eligible=0.5), 0.75)
    for what in order:
        assert bench.records() == []
        match what:
            case "loss":
                tasks.learned(0, 2.0)
                tasks.learned(1, 3.0)
            case "end":
                tasks.ended(1, 5.0)
                tasks.ended(0, 4.0)
            case "step":
                tasks.stepped(1, 0, 7, 9.0)
    assert bench.records() == [
        TrainedTask("t0", "finished", 0.5, 8, 1, 0.75, 4.0, 2.0, 7, 0),
        TrainedTask("t1", "finished", 0.5, 8, 1, 0.75, 5.0, 3.0, 7, 1),
    ]


def test_the_step_of_another_node_is_not_the_groups_own(bench: Bench) -> None:
    tasks = bench.tasks(1)
    offered(tasks)
    tasks.place(place(0, node=1), 0.0)
    tasks.learned(0, 2.0)
    tasks.ended(0, 4.0)
    tasks.stepped(0, 0, 7, 9.0)
    assert bench.records() == []


def test_groups_that_come_again_must_go_where_they_were_if_nodes_step_together(bench: Bench) -> None:
    cuts = [GroupCut(group, (f"t{group}",), (8,), (0, 0), ()) for group in range(3)]
    for together, nodes in ((StepsTogether((0, 1, 2)), [2, None]), (None, [None, None])):
        tasks = bench.tasks(4, together=together, cuts=cuts, done={0}, places={0: 1, 1: 2})
        events = [tasks.supply(0.0, ahead=9, served=False) for _ in range(2)]
        assert [(event.group, event.node) for event in events if isinstance(event, GroupOffered)] == [
            (1, nodes[0]),
            (2, nodes[1]),
        ]


def test_training_without_an_end_ends_with_serving(bench: Bench) -> None:
    tasks = bench.tasks(None)
    assert offered(tasks, ahead=2) == [0, 1] and tasks.total is None
    tasks.place(place(0), 1.0)
    assert tasks.supply(2.0, ahead=2, served=True) == TrainingClosed(2.0)
    assert tasks.supply(2.0, ahead=2, served=True) is None, "told once"
    assert not tasks.finished, "what has begun runs to its end"
    tasks.learned(0, 2.0)
    tasks.ended(0, 4.0)
    tasks.stepped(0, 0, 1, 9.0)
    assert tasks.finished


def test_an_amount_of_training_goes_on_when_serving_has_ended(bench: Bench) -> None:
    assert offered(bench.tasks(3), served=True) == [0, 1, 2]


def test_training_on_what_clients_send_waits_for_it_and_ends_with_them(bench: Bench) -> None:
    waiting = SampleQueue(Training(sequence_length=4), ByteTokenizer())
    tasks = bench.tasks(9, samples=waiting)
    assert offered(tasks) == [] and not tasks.finished
    waiting.add([Sample(name, waiting.tokenised(Document("abc"))) for name in "xy"])
    assert tasks.samples_waiting == 2
    assert offered(tasks, ahead=1) == [0] and tasks.samples_waiting == 1
    tasks.place(place(0), 1.0)
    assert tasks.supply(2.0, ahead=1, served=True) == TrainingClosed(2.0) and waiting.closed
    tasks.learned(0, 2.0)
    tasks.ended(0, 4.0)
    tasks.stepped(0, 0, 1, 9.0)
    assert [(record.id, record.samples) for record in bench.records()] == [("posted0", ["x"])]


def test_a_refused_group_ends_training(bench: Bench) -> None:
    tasks = bench.tasks(8, per_group=2)
    assert offered(tasks, ahead=2) == [0, 1]
    tasks.place(place(0), 1.0)
    for number in (2, 3):
        tasks.refuse(number)
    assert tasks.supply(2.0, ahead=2, served=False) == TrainingClosed(2.0)
    assert not tasks.finished, "the group before has begun"


def test_trained_and_refused_micro_batches_keep_their_names_for_late_reports_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_table, "LATE_REPORTS", 2)
    tasks = bench.tasks(4, per_group=2)
    assert offered(tasks) == [0, 1]
    for number in (2, 3):
        tasks.refuse(number)
    assert dict(bench.names) == {0: "t0", 1: "t1", 2: "t2", 3: "t3"}
    for number in (0, 1):
        tasks.place(place(number), 1.0)
        tasks.learned(number, 2.0)
        tasks.ended(number, 4.0)
    tasks.stepped(0, 0, 1, 9.0)
    assert dict(bench.names) == {0: "t0", 1: "t1"}, "others have ended since the refusal"


def test_a_step_of_all_nodes_takes_as_many_groups_as_there_are_nodes(bench: Bench) -> None:
    tasks = bench.tasks(3, together=StepsTogether([0, 1]))
    assert offered(tasks) == [0, 1]
    for number in range(2):
        assert tasks.orders() == {}
        tasks.place(place(number, node=number), 1.0)
    assert tasks.orders() == {0: StepTogether(0, [(0, 0.5)]), 1: StepTogether(0, [(1, 0.5)])}
    for number in range(2):
        tasks.learned(number, 2.0)
        tasks.ended(number, 4.0)
    tasks.stepped(0, 0, 1, 9.0)
    assert offered(tasks) == [] and (tasks.steps, tasks.trained) == (0, 0), "node 1 has not taken it"
    tasks.stepped(1, 0, 1, 9.0)
    assert (tasks.steps, tasks.trained) == (1, 2)
    assert offered(tasks) == [2]
    tasks.place(place(2, node=1), 5.0)
    assert tasks.orders() == {0: StepTogether(2, []), 1: StepTogether(2, [(2, 1.0)])}, "no more will come"


def test_a_step_of_all_nodes_does_without_groups_that_are_refused_or_dropped(bench: Bench) -> None:
    tasks = bench.tasks(None, together=StepsTogether([0, 1, 2]))
    assert offered(tasks) == [0, 1, 2]
    tasks.place(place(0, node=2), 1.0)
    tasks.refuse(1)
    assert tasks.orders() == {}, "a group still waits for the policy"
    assert tasks.supply(2.0, ahead=3, served=False) == TrainingClosed(2.0)
    assert tasks.orders() == {
        0: StepTogether(0, []),
        1: StepTogether(0, []),
        2: StepTogether(0, [(0, 1.0)]),
    }
