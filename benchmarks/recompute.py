"""What `training.recompute` saves of memory, and what it costs of time: a group's forwards, then its backwards, on one stage.

    OMP_NUM_THREADS=1 python benchmarks/recompute.py
    OMP_NUM_THREADS=1 python benchmarks/recompute.py --layers 24 --length 1024

The first of two stages of a small Llama on the CPU, in float32; gradients of its output are made up. `kept` is what was
allocated when all forwards had run, `peak` the most at any time, both by torch's memory profiler, beside weights and the
sums of their gradients. MB are 10^6 bytes.
"""

from __future__ import annotations

import argparse
import time
from itertools import accumulate
from typing import Any

import numpy as np
from torch.profiler import ProfilerActivity, profile

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.engines.meter import finish
from lemix_hpc.engines.protocol import MicroBatch
from lemix_hpc.engines.torch.build import build_stage
from lemix_hpc.engines.torch.stage import TorchStage

MICRO_BATCHES = 4
CHOICES = ("none", "layers", "all")


def stage(recompute: str, layers: int) -> TorchStage:
    config = {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 1000,
        "max_position_embeddings": 4096,
    }
    content = {
        "nodes": {"stages": 2},
        "model": {"config": config},
        "engine": {"dtype": "float32", "device": "cpu"},
        "training": {"release": "sync", "schedule": "gpipe", "recompute": recompute},
    }
    return build_stage(Recipe.model_validate(content), stage=0, device="cpu")


def forwards(engine: TorchStage, length: int) -> None:
    for index in range(MICRO_BATCHES):
        tokens = np.random.default_rng(index).integers(0, 1000, (1, length), dtype=np.int32).tobytes()
        finish(engine.forward(MicroBatch(index, 0, index, MICRO_BATCHES, 1, length, tokens, tokens), None))


def backwards(engine: TorchStage, length: int) -> None:
    for index in range(MICRO_BATCHES):
        finish(engine.backward(index, engine.sample(1, length)))


def allocated(profiled: profile) -> list[int]:
    """Bytes more than at the start, after each time that memory was taken or given back."""
    assert profiled.profiler is not None, "it has run"
    results: Any = profiled.profiler.kineto_results
    events = results.events()
    return list(accumulate(event.nbytes() for event in events if event.name() == "[memory]")) or [0]


def measure(recompute: str, layers: int, length: int, repeats: int) -> tuple[float, float, float]:
    """Bytes kept and at the peak, and the shortest seconds of a group."""
    engine = stage(recompute, layers)
    seconds = []
    for again in range(1 + repeats):  # all of one group, so that the sums of its gradients are there
        start = time.perf_counter()
        forwards(engine, length)
        backwards(engine, length)
        if again:
            seconds.append(time.perf_counter() - start)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as first:
        forwards(engine, length)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as second:
        backwards(engine, length)
    kept = allocated(first)[-1]
    engine.close()
    return kept, max(*allocated(first), *(kept + more for more in allocated(second))), min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"{options.layers // 2} layers, {MICRO_BATCHES} micro-batches of {options.length} tokens")
    print(f"{'recompute':10}{'kept, MB':>10}{'peak, MB':>10}{'group, s':>10}{'of none':>9}")
    alone = 0.0
    for recompute in CHOICES:
        kept, peak, seconds = measure(recompute, options.layers, options.length, options.repeats)
        alone = alone or seconds
        print(f"{recompute:10}{kept / 1e6:10.1f}{peak / 1e6:10.1f}{seconds:10.3f}{seconds / alone:9.2f}", flush=True)


if __name__ == "__main__":
    main()
