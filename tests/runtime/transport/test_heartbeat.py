"""A loop that turns sends signs of life; one that hangs tells where."""

import faulthandler
import subprocess
import sys

from lemix_hpc.runtime.transport.heartbeat import Heartbeat

HANGS = """
import time
from lemix_hpc.runtime.transport.heartbeat import Heartbeat

def engine_that_hangs():
    time.sleep(3)

Heartbeat(lambda: print("alive", flush=True), 0.5).beat()
engine_that_hangs()
"""


def test_a_loop_that_hangs_leaves_its_stack() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, check=True)
    assert done.stdout == "alive\n"
    assert "Timeout (0:00:00.500000)!" in done.stderr
    assert "in engine_that_hangs" in done.stderr


def test_beats_are_rare() -> None:
    signs: list[int] = []
    heart = Heartbeat(lambda: signs.append(1), 3600.0)
    for _ in range(1000):
        heart.beat()
    faulthandler.cancel_dump_traceback_later()
    assert len(signs) == 1
