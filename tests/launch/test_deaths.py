"""Who died, from what srun and several kinds of mpiexec print."""

import pytest

from lemix_hpc.launch.deaths import Death, first_death

SRUN = """\
srun: Job step aborted: Waiting up to 12 seconds for job step to finish.
slurmstepd-n1: error: *** STEP 4.0 ON n1 CANCELLED AT 2026-11-25T20:13:08 ***
srun: error: n2: tasks 3-5: Killed
srun: launch/slurm: _step_signal: Terminating StepId=4.0
srun: error: n1: task 0: Exited with exit code 14
"""
PRTERUN = """\
--------------------------------------------------------------------------
prterun noticed that process rank 2 with PID 11971 on node vm exited on
signal 9 (Killed).
--------------------------------------------------------------------------
"""
EXIT_CODE = """\
prterun detected that one or more processes exited with non-zero status,
thus causing the job to be terminated. The first process to do so was:

   Process name: [prterun-vm-12@1,0]
   Exit code:    75
"""


@pytest.mark.parametrize(
    ("printed", "death", "said"),
    [
        (SRUN, Death("3-5", "n2", 9), "one of ranks 3-5 on n2 was killed by signal 9 (SIGKILL)"),
        (
            "srun: error: gpu-7: task 11: Segmentation fault (core dumped)\n",
            Death("11", "gpu-7", 11),
            "rank 11 on gpu-7 was killed by signal 11 (SIGSEGV)",
        ),
        (
            "srun: error: n1: task 0: Exited with exit code 75\n",
            Death("0", "n1", None, 75),
            "rank 0 on n1 exited with code 75",
        ),
        (
            "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.\nsrun: error: n1: task 4: Out Of Memory\n",
            Death("4", "n1", None, None, out_of_memory=True),
            "rank 4 on n1 was killed because memory ran out",
        ),
        ("srun: error: Node failure on n2\n", Death(host="n2", node_failure=True), "host n2 has failed"),
        (PRTERUN, Death("2", "vm", 9), "rank 2 on vm was killed by signal 9 (SIGKILL)"),
        (EXIT_CODE, Death("0", code=75), "rank 0 exited with code 75"),
        (
            "YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)\n",
            Death(signal=9),
            "a rank was killed by signal 9 (SIGKILL)",
        ),
    ],
)
def test_the_first_to_die_is_told_with_its_cause(printed: str, death: Death, said: str) -> None:
    assert first_death(printed) == death
    assert str(death) == said


def test_ordinary_output_names_nobody() -> None:
    assert first_death("rank 0 (node 0, leader) failed: UserError: no such file\nsrun: got SIGCONT\n") is None
