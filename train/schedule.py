"""The learning rate as a function of the step."""

import math

from train.config import ScheduleConfig


def learning_rate_factor(config: ScheduleConfig, step: int, num_steps: int) -> float:
    """The share of the peak learning rate at a step, counted from 0.

    Warm-up rises as (step + 1) / warmup_steps. What follows falls from 1 to final_ratio over the remaining steps along
    half a cosine wave or a line, or stays at 1. Source: specs/decoder.md, section 5.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.shape == "constant":
        return 1.0
    done = min(1.0, (step - config.warmup_steps) / max(num_steps - config.warmup_steps, 1))
    fall = 0.5 * (1 + math.cos(math.pi * done)) if config.shape == "cosine" else 1 - done
    return config.final_ratio + (1 - config.final_ratio) * fall
