"""How well a run forecast its responses, beside what no forecast could have known.

    python benchmarks/forecast_error.py RUN [RUN ...]

For each run, by name or directory: the mean of |predicted - real response| in T0, and the same of the straight line in the
tokens of a request that fits the real responses best, drawn when all of them were known. Requests of one length differ on a
machine that is never quite quiet, and by waiting; what that line misses is the least that forecasts by length can miss.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
from scipy.optimize import linprog

from lemix_hpc.launch.registry import find_run
from lemix_hpc.records.reader import read_run
from lemix_hpc.records.schema import ServedTask


def forecast_error(tasks: list[ServedTask]) -> float:
    """Mean seconds between predicted and real responses."""
    return statistics.mean(abs((task.predicted_response_s or 0.0) - response(task)) for task in tasks)


def hindsight_error(tasks: list[ServedTask]) -> float:
    """Mean seconds between real responses and the straight line in the tokens for which that is least: a linear programme."""
    tokens = np.array([task.prompt_tokens + len(task.output) for task in tasks], dtype=float)
    real = np.array([response(task) for task in tasks])
    count = len(tasks)
    line = np.column_stack((np.ones(count), tokens))
    off = -np.eye(count)
    best = linprog(
        np.concatenate(([0.0, 0.0], np.ones(count))),
        A_ub=np.block([[line, off], [-line, off]]),
        b_ub=np.concatenate((real, -real)),
        bounds=[(None, None)] * 2 + [(0, None)] * count,
    )
    return float(best.fun) / count


def response(task: ServedTask) -> float:
    assert task.finished is not None, "only finished ones are asked for"
    return task.finished - task.arrival


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN")
    for name in parser.parse_args().runs:
        records = read_run(find_run(name).path)
        t0 = records.facts.t0_s
        tasks = [t for t in records.served if t.finished is not None and t.predicted_response_s is not None]
        error, least = forecast_error(tasks) / t0, hindsight_error(tasks) / t0
        print(f"{name}: T0 {1e3 * t0:.1f} ms, mean error {error:.3f} T0, of the best line in hindsight {least:.3f} T0")


if __name__ == "__main__":
    main()
