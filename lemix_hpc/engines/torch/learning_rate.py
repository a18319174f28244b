"""The learning rate over the steps of an optimizer."""

from __future__ import annotations

import math

from lemix_hpc.config.training_section import Training


def learning_rate_factor(training: Training, step: int) -> float:
    """The part of the full learning rate for the step with this number, from 0; skipped steps do not count.

    It rises over `warmup_steps` from 1 / `warmup_steps`, and then falls to `minimum_learning_rate`, where it is from step
    `decay_steps` on: along a line, or half a cosine (Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5).
    """
    warmup = training.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if training.decay_steps is None:
        return 1.0
    lowest = training.minimum_learning_rate / training.learning_rate
    done = min(1.0, (step - warmup) / (training.decay_steps - warmup))
    left = 1.0 - done if training.learning_rate_schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return lowest + (1.0 - lowest) * left
