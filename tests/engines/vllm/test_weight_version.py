import threading

from lemix_hpc.engines.vllm.weight_version import WeightClock


def test_a_new_version_waits_until_the_batch_being_scheduled_has_departed() -> None:
    clock = WeightClock()
    order: list[str | int] = []
    assert clock.begin() == 0
    asked = threading.Event()

    def advance() -> None:
        asked.set()
        with clock:
            order.append(clock.advance())

    thread = threading.Thread(target=advance)
    thread.start()
    asked.wait()
    order.append("departed")
    clock.departed()
    thread.join()
    assert order == ["departed", 1]
    assert clock.begin() == 1
    clock.departed()


def test_a_node_may_start_at_a_later_version() -> None:
    clock = WeightClock(5)
    assert clock.begin() == 5
    clock.departed()
    with clock:
        assert clock.advance() == 6


def test_versions_of_batches_never_go_back_under_concurrent_advances() -> None:
    clock = WeightClock()

    def advance() -> None:
        for _ in range(200):
            with clock:
                clock.advance()

    thread = threading.Thread(target=advance)
    thread.start()
    seen = []
    for _ in range(500):
        seen.append(clock.begin())
        clock.departed()
    thread.join()
    assert seen == sorted(seen)
    assert clock.begin() == 200
