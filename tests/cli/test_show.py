from lemix_hpc.cli.show import progress_line
from lemix_hpc.policy.drift import Drift
from lemix_hpc.runtime.records import Progress


def test_drift_is_shown_live():
    progress = Progress("running", elapsed_s=2.0, drift=[Drift(1, "serve", 2.96, since_s=1.0)])
    line = progress_line("RUNNING", progress)
    assert line == "running (running), 2.0 s, drift: stage 1 serve takes 3 x its predicted time"
