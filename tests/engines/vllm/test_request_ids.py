import pytest

from lemix_hpc.engines.vllm.request_ids import request_id, task_of


@pytest.mark.parametrize("task", [0, 7, 123456, -3])
@pytest.mark.parametrize("around", ["{}", "cmpl-{}-0-1a2b3c4d", "chatcmpl-{}-9f"])
def test_a_task_is_found_again_in_what_vllm_makes_of_its_name(task: int, around: str) -> None:
    assert task_of(around.format(request_id(task))) == task


def test_a_request_of_somebody_else_is_no_task() -> None:
    with pytest.raises(ValueError, match="not a task of this run"):
        task_of("cmpl-abc")
