import random

from hypothesis import given
from hypothesis import strategies as st

from lemix_hpc.runtime.stage.version_queue import VersionQueue


def test_serving_may_overtake_training_but_nothing_overtakes_an_update() -> None:
    queue: VersionQueue[str, str, str] = VersionQueue()
    queue.add_train("t1")
    queue.add_serve("s1", 0.0)
    queue.add_update("u1")
    queue.add_serve("s2", 0.0)
    assert queue.take_serve() == "s1"
    assert queue.next_serve is None, "s2 is behind the update"
    assert queue.update is None, "t1 is in front of the update"
    assert queue.take_train() == "t1"
    assert queue.update == "u1"
    queue.pass_update()
    assert queue.take_serve() == "s2"
    assert len(queue) == 0


@given(st.lists(st.sampled_from(["serve", "train", "update"]), max_size=40), st.randoms(use_true_random=False))
def test_every_item_runs_once_in_its_own_epoch(kinds: list[str], rng: random.Random) -> None:
    queue: VersionQueue[int, int, int] = VersionQueue()
    section_of, key_of, section = {}, {}, 0
    for item, kind in enumerate(kinds):
        key_of[item] = rng.choice([0.0, 1.0, 2.0]) if kind == "serve" else 0.0
        if kind == "serve":
            queue.add_serve(item, key_of[item])
        else:
            (queue.add_train if kind == "train" else queue.add_update)(item)
        section_of[item] = section
        section += kind == "update"
    ran, updates = [], 0
    while len(queue):
        choices = [
            name for name, ready in (("serve", queue.next_serve), ("train", queue.next_train)) if ready is not None
        ]
        if choices:
            item = queue.take_serve() if rng.choice(choices) == "serve" else queue.take_train()
            assert section_of[item] == updates
        else:
            assert queue.update is not None
            item = queue.update
            queue.pass_update()
            updates += 1
        ran.append(item)
    assert sorted(ran) == list(range(len(kinds)))
    for kind in ("serve", "train", "update"):
        mine = [item for item in ran if kinds[item] == kind]
        in_order = sorted(mine, key=lambda item: (section_of[item], key_of[item], item))
        assert mine == in_order, "within a section serving runs by its key, everything else as it came"
