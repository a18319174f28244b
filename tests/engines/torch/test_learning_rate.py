"""Schedules beside those that torch has."""

from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from lemix_hpc.config.training_section import Training
from lemix_hpc.engines.torch.learning_rate import learning_rate_factor


def of(**training: Any) -> list[float]:
    """The rates of 60 steps."""
    settings = Training(**training)
    return [settings.learning_rate * learning_rate_factor(settings, step) for step in range(60)]


def torchs(kind: str, rate: float, warmup: int, end: int, lowest: float) -> list[float]:
    """The same from torch's own schedules."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=rate)
    rising = lr_scheduler.LinearLR(optimizer, start_factor=1 / max(warmup, 1), total_iters=max(warmup - 1, 0))
    falling: Any
    if kind == "cosine":
        falling = lr_scheduler.CosineAnnealingLR(optimizer, T_max=end - warmup, eta_min=lowest)
    else:
        falling = lr_scheduler.LinearLR(optimizer, 1.0, end_factor=lowest / rate, total_iters=end - warmup)
    schedule = lr_scheduler.SequentialLR(optimizer, [rising, falling], [warmup]) if warmup else falling
    rates: list[float] = []
    for step in range(60):
        # Torch's cosine rises again behind its end; ours stays.
        rates.append(optimizer.param_groups[0]["lr"] if step <= end else rates[end])
        optimizer.step()
        schedule.step()
    return rates


@given(
    kind=st.sampled_from(["linear", "cosine"]),
    warmup=st.integers(0, 20),
    decay=st.integers(1, 45),
    rate=st.floats(1e-5, 1.0),
    lowest=st.floats(0.0, 1.0),
)
def test_schedules_are_torchs_own(
    kind: Literal["linear", "cosine"], warmup: int, decay: int, rate: float, lowest: float
) -> None:
    end, minimum = warmup + decay, lowest * rate
    mine = of(
        learning_rate=rate,
        learning_rate_schedule=kind,
        warmup_steps=warmup,
        decay_steps=end,
        minimum_learning_rate=minimum,
    )
    assert mine == pytest.approx(torchs(kind, rate, warmup, end, minimum), abs=1e-6, rel=1e-6)
    assert mine[end:] == pytest.approx([minimum] * len(mine[end:]), abs=1e-12)


def test_without_a_schedule_it_stays() -> None:
    assert of(learning_rate=2.0, warmup_steps=4) == [0.5, 1.0, 1.5] + [2.0] * 57
    assert of(learning_rate=2.0) == [2.0] * 60


@pytest.mark.parametrize(
    ("training", "reason"),
    [
        ({"learning_rate_schedule": "cosine"}, "cosine needs `decay_steps`"),
        ({"decay_steps": 5}, "only learning_rate_schedule: linear or cosine uses `decay_steps`"),
        ({"minimum_learning_rate": 1e-6}, "only learning_rate_schedule: linear or cosine uses `minimum_learning_rate`"),
        (
            {"learning_rate_schedule": "linear", "decay_steps": 5, "warmup_steps": 5},
            "5 are over before the `warmup_steps`, 5",
        ),
        (
            {"learning_rate_schedule": "linear", "decay_steps": 5, "minimum_learning_rate": 1.0},
            "1.0, is above `learning_rate`, 0.0001",
        ),
        ({"betas": [0.9]}, "at least 2 items"),
        ({"betas": [0.9, 1.0]}, "less than 1"),
        ({"no_weight_decay": ["heads"]}, "'norms', 'biases' or 'embeddings'"),
    ],
)
def test_what_makes_no_sense_is_refused(training: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Training(**training)
