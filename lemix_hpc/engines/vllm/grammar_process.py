"""The process that tries grammars out: each in a copy of itself, which may take too long, fill its memory, or crash.

A grammar, a regular expression or a JSON schema of a few bytes can keep vLLM's compilers busy for hours, or end the process in
native code. Here that ends one copy. What passes takes vLLM about as long as it took here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, Pipe, wait
from time import monotonic, process_time
from types import SimpleNamespace
from typing import Any

from lemix_hpc.workload import limited_copy

CPU_S = 5
"""Processor time of all threads that compile one grammar."""
WALL_S = 60.0
"""The same by the clock, however busy the host is."""
READ_S = 1.0
"""Processor time to read it, which the node's server does once more while its other calls wait."""
MOST_BYTES = 1 << 30
"""Memory that one grammar may take."""
READY = "ready"
_NICE = 10


@dataclass(frozen=True, slots=True)
class Trial:
    """A grammar under trial. `until`: by the monotonic clock [s]."""

    number: int
    pid: int
    until: float


def start(config: Any) -> tuple[Connection, subprocess.Popen[bytes]]:
    """Start the process for an engine with this VllmConfig. It ends when the connection is closed.

    It sends READY once; then it answers each (number, sampling parameters) with (number, why they are refused, or "").
    """
    door, inside = Pipe()
    command = [sys.executable, "-m", __name__, str(inside.fileno())]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[inside.fileno()])
    inside.close()
    door.send(config)
    return door, process


def answer_all(door: Connection, judge: Callable[[Any], str]) -> None:
    """What the process does. `judge` takes sampling parameters and returns why they are refused, or ""."""
    door.send(READY)
    trials: dict[Connection, Trial] = {}
    while True:
        soonest = min((trial.until for trial in trials.values()), default=None)
        heard = wait([door, *trials], None if soonest is None else max(soonest - monotonic(), 0.0))
        for verdict in [one for one in trials if one in heard]:
            trial = trials.pop(verdict)
            door.send((trial.number, _ended(verdict, trial.pid)))
        for trial in trials.values():
            if trial.until <= monotonic():
                os.kill(trial.pid, signal.SIGKILL)
        if door in heard:
            try:
                number, params = door.recv()
            except EOFError:
                return
            verdict, pid = limited_copy.start(partial(judge, params), CPU_S, MOST_BYTES)
            trials[verdict] = Trial(number, pid, monotonic() + WALL_S)


def make_judge(config: Any) -> Callable[[Any], str]:
    """Compiles as the engine does, with its backend, tokenizer and options."""
    import torch
    from vllm.v1.structured_output import StructuredOutputManager
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend
    from vllm.v1.structured_output.request import StructuredOutputRequest

    manager = StructuredOutputManager(config)
    # Threads do not outlive a fork, and there is one grammar in a copy.
    manager._use_async_grammar_compilation = False
    if config.structured_outputs_config.backend == "xgrammar":
        vocabulary = config.model_config.get_vocab_size()
        manager.backend = XgrammarBackend(config, tokenizer=manager.tokenizer, vocab_size=vocabulary)

    def judge(params: Any) -> str:
        begun = process_time()
        try:
            params._validate_structured_outputs(
                config.model_config, config.structured_outputs_config, manager.tokenizer
            )
            if process_time() - begun > READ_S:
                return f"The grammar takes more than {READ_S:g} s to read."
            request = SimpleNamespace(
                request_id="trial",
                sampling_params=params,
                structured_output_request=StructuredOutputRequest.from_sampling_params(params),
            )
            manager.grammar_init(request)
            grammar = request.structured_output_request.grammar
            if isinstance(grammar, Exception):
                raise grammar
            bitmask: torch.Tensor = manager.backend.allocate_token_bitmask(1)
            grammar.fill_bitmask(bitmask, 0)
            if not bitmask.any():
                return "The grammar allows nothing at all."
        except Exception as error:  # noqa: BLE001  whatever they raise is about the grammar
            return f"The grammar cannot be compiled: {error}"[:1000]
        return ""

    return judge


def _ended(verdict: Connection, pid: int) -> str:
    """What a copy has found, or what its end says."""
    found, late = limited_copy.ended(verdict, pid)
    if found is not None:
        return found
    if late:
        return f"The grammar takes more than {CPU_S} s to compile."
    return f"The grammar cannot be compiled in {MOST_BYTES >> 20} MiB, or breaks the compiler."


def main() -> None:
    """The process, with the number of the descriptor that it is asked at as its argument."""
    from lemix_hpc.engines.vllm.process_guard import die_with_parent

    die_with_parent(signal.SIGKILL)
    os.nice(_NICE)
    with Connection(int(sys.argv[1])) as door, contextlib.suppress(BrokenPipeError):
        answer_all(door, make_judge(door.recv()))


if __name__ == "__main__":
    main()
