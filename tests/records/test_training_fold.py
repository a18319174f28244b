"""What is forgotten of training, and what then cannot be done again."""

import pytest

from lemix_hpc.config.errors import UserError
from lemix_hpc.records.journal import GroupCut, Stepped
from lemix_hpc.records.schema import TrainedTask
from lemix_hpc.records.training_fold import Behind, TrainingFold


def fold(steps: dict[int, int], told: int) -> TrainingFold:
    """Groups with the version that the step of each has made on its node, group % 2; the first ones have their lines."""
    made = TrainingFold()
    for group in range(6):
        made.cuts[group] = GroupCut(group, (f"t{group}",), (64,), (0, group), ())
        made.places[group] = group % 2
    for group, version in steps.items():
        made.steps.append(Stepped(group % 2, (group,), version, 1.0, skipped=version == 2))
    for group in range(told):
        made.tell(TrainedTask(f"t{group}", "finished", 0.0, 64, group % 2, loss=float("nan"), step=steps[group]))
    return made


STEPS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 3}


@pytest.mark.parametrize(
    ("saved", "told", "left"),
    [
        ({}, 5, [0, 1, 2, 3, 4, 5]),
        ({0: 1, 1: 1}, 5, [2, 3, 4, 5]),
        ({0: 9, 1: 1}, 5, [3, 4, 5]),  # group 4 is saved, and comes behind one that is not
        ({0: 9, 1: 9}, 5, [5]),
        ({0: 9, 1: 9}, 3, [3, 4, 5]),  # the line of the next one may still be lost
    ],
)
def test_the_first_groups_are_forgotten_that_are_saved_and_told(
    saved: dict[int, int], told: int, left: list[int]
) -> None:
    made = fold(STEPS, told)
    before = made.versions, made.trained, made.lost_losses
    made.forget(saved)
    assert list(made.cuts) == list(made.places) == left
    assert (made.behind.groups, made.behind.micro_batches) == (left[0], left[0])
    assert (made.versions, made.trained, made.lost_losses) == before
    assert made.behind.steps + len(made.steps) == len(STEPS)
    assert made.behind.skipped + sum(step.skipped for step in made.steps) == 2
    assert (made.behind.text is None) == (left[0] == 0)


def test_without_weights_training_starts_over_and_with_older_ones_it_cannot() -> None:
    made = fold(STEPS, 5)
    made.forget({0: 2, 1: 2})
    made.cut_back({0: 2, 1: 2})
    assert list(made.cuts) == [4, 5] and not made.steps
    with pytest.raises(UserError, match="Take a newer checkpoint"):
        made.cut_back({0: 1, 1: 2})
    made.cut_back({})
    assert made == TrainingFold() and made.behind == Behind()
