"""Grids, their sums and the search for a capacity, with real runs and with invented ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from lemix_hpc.config.load import load_recipe
from lemix_hpc.config.recipe import Recipe
from lemix_hpc.records.schema import ServedTask
from lemix_hpc.studies import capacity
from lemix_hpc.studies.capacity import Search, Target
from lemix_hpc.studies.compare import summed_up
from lemix_hpc.studies.recipe_variants import rate_of, with_fixed_requests, with_rate
from lemix_hpc.studies.sweep import Cell, Done, Grid, run_grid
from lemix_hpc.workload.requests import load_requests
from tests.studies.test_simulated_run import RECIPE


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return load_recipe(tmp_path / "recipe.yaml")


def test_processes_do_not_change_what_comes_out(recipe: Recipe) -> None:
    grid = Grid(recipe, ["pack", "separate"], rates=[20.0, 40.0], seeds=[0, 1])
    assert list(run_grid(grid, jobs=1)) == list(run_grid(grid, jobs=2))


def test_ratios_are_to_the_baseline_under_the_same_load() -> None:
    def done(policy: str, rate: float, seed: int, figure: float | None) -> Done:
        return Done(Cell(policy, rate, None, seed), None, {"x": figure})

    rows = summed_up(
        [done("pack", 1.0, 0, 2.0), done("pack", 1.0, 1, 4.0), done("lemix", 1.0, 0, 6.0), done("pack", 2.0, 0, None)],
        "pack",
    )
    assert [(row.policy, row.rate, row.runs, row.means["x"], row.ratios["x"]) for row in rows] == [
        ("pack", 1.0, 2, 3.0, 1.0),
        ("lemix", 1.0, 1, 6.0, 2.0),
        ("pack", 2.0, 1, None, None),
    ]


def test_runs_that_broke_down_are_in_no_mean() -> None:
    cells = [Cell(policy, None, None, seed) for policy in ("fill", "pack") for seed in (0, 1)]
    values = [1.0, 3.0, 5.0, 7.0]
    done = [Done(cell, None, {"throughput": value}) for cell, value in zip(cells, values, strict=True)]
    broken = [dataclasses.replace(one, broken="NaN") for one in done]
    fill, pack = summed_up([done[0], broken[1], *done[2:]], "fill")
    assert (fill.runs, fill.broken, fill.means) == (2, 1, {"throughput": 1.0})
    assert (pack.broken, pack.ratios) == (0, {"throughput": 6.0})
    fill, pack = summed_up([*broken[:2], *done[2:]], "fill")
    assert (fill.broken, fill.means, pack.ratios) == (2, {"throughput": None}, {"throughput": None})


def test_a_rate_moves_the_same_requests_in_time(recipe: Recipe) -> None:
    serving = recipe.serving
    assert serving is not None
    source = serving.source.model_copy(update={"requests": None, "duration_s": 5.0})
    timed = recipe.model_copy(update={"serving": serving.model_copy(update={"source": source})})
    fixed = with_fixed_requests(timed)
    slow, fast = (
        load_requests(r.serving, seed=0, tokenizer=None).requests for r in (fixed, with_rate(fixed, 60.0)) if r.serving
    )
    assert [r.arrival for r in fast] == pytest.approx([r.arrival / 2 for r in slow])
    assert [r.prompt_tokens for r in fast] == [r.prompt_tokens for r in slow]


@pytest.mark.usefixtures("recipe")
def test_a_trace_is_scaled_in_time(tmp_path: Path) -> None:
    lines = [f"2023-11-16 18:00:{second:02d}.0000000,100,10" for second in range(0, 50, 2)]
    (tmp_path / "trace.csv").write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n")
    trace = f"serving.source={{kind: azure, path: {tmp_path / 'trace.csv'}}}"
    traced = load_recipe(tmp_path / "recipe.yaml", [trace])
    assert rate_of(traced) == pytest.approx(25 / 48)
    faster = with_rate(traced, 5.0)
    assert faster.serving is not None
    assert faster.serving.rate_scale == pytest.approx(5.0 * 48 / 25)
    assert rate_of(faster) == pytest.approx(5.0)


@pytest.mark.parametrize("slo", [5.0, None], ids=["in T0", "in milliseconds"])
@pytest.mark.parametrize(
    ("breaks_at", "verdict"), [(37.0, "found"), (300.0, "found"), (1e-9, "misses"), (1e9, "holds")]
)
def test_the_capacity_is_where_attainment_breaks(
    recipe: Recipe, breaks_at: float, verdict: str, slo: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[float] = []

    def run(recipe: Recipe) -> SimpleNamespace:
        rate = rate_of(recipe)
        tried.append(rate)
        done = ServedTask("r", "finished", 0.0, 1, first_token=0.0, finished=0.1 if rate <= breaks_at else 9.0)
        facts = SimpleNamespace(t0_s=0.1, slo_ms={"ttft": 1e9, "response": 500.0})
        return SimpleNamespace(records=SimpleNamespace(served=[done], facts=facts))

    monkeypatch.setattr(capacity, "simulate", run)
    found = Search(recipe, Target(slo, 0.9, (0, 1), 0.01))("least-completion")
    assert found.verdict == verdict
    assert found.tried == len(tried) / 2
    if verdict == "found":
        assert breaks_at / 1.011 < found.rate <= breaks_at
    else:
        assert found.rate == (min(tried) if verdict == "misses" else max(tried))
