"""The learning rate as the specification has it, and the shapes it may take."""

import pytest

from train.config import ScheduleConfig
from train.schedule import learning_rate_factor


def test_ten_steps_of_the_published_run():
    # specs/decoder.md, section 5: peak 3e-4, floor 3e-5, four steps of warm-up; then 3e-5 is what the checkpoint stores
    published = [7.5e-5, 1.5e-4, 2.25e-4, 3e-4, 3e-4, 2.82e-4, 2.33e-4, 1.65e-4, 9.75e-5, 4.81e-5, 3e-5]
    config = ScheduleConfig(shape="cosine", warmup_steps=4, final_ratio=0.1)
    rates = [3e-4 * learning_rate_factor(config, step, 10) for step in range(11)]
    assert rates == pytest.approx(published, abs=6e-7), "three digits are published"


def test_line_falls_by_equal_parts():
    config = ScheduleConfig(shape="linear", warmup_steps=2, final_ratio=0.2)
    factors = [learning_rate_factor(config, step, 6) for step in range(7)]
    assert factors == pytest.approx([0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2])


def test_constant_stays_at_the_peak_after_its_warm_up():
    config = ScheduleConfig(shape="constant", warmup_steps=2, final_ratio=0.1)
    assert [learning_rate_factor(config, step, 4) for step in range(5)] == [0.5, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_nothing_falls_below_the_floor(shape: str):
    config = ScheduleConfig(shape=shape, warmup_steps=3, final_ratio=0.25)
    assert learning_rate_factor(config, 50, 10) == pytest.approx(0.25), "a run that goes on after its end"
    assert learning_rate_factor(config, 5, 3) == pytest.approx(0.25), "a warm-up as long as the run"


def test_run_shorter_than_its_warm_up_only_rises():
    config = ScheduleConfig(warmup_steps=8)
    assert [learning_rate_factor(config, step, 4) for step in range(4)] == [0.125, 0.25, 0.375, 0.5]
