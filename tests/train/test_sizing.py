"""What is said and decided about size before the first step: near enough to what then happens."""

import logging
import time
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from pixelcore.accounting import flops_per_token, training_bytes
from pixelcore.config import DecoderConfig
from pixelcore.errors import UserError
from pixelcore.initialise import initialise
from pixelcore.models.decoder import Decoder
from train import sizing
from train.sizing import announce_cpu_cost, free_bytes, human_time, measure_matmul_flops, micro_batch_blocks, peak_flops

CPU = torch.device("cpu")
CONFIG = DecoderConfig(
    vocab_size=500,
    context_length=256,
    num_layers=4,
    hidden_size=128,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=320,
)


def model_of(config: DecoderConfig) -> Decoder:
    model = Decoder(config)
    initialise(model, 0)
    return model


@pytest.mark.parametrize("recompute", [False, True])
def test_estimate_of_memory_is_near_what_a_step_keeps(recompute: bool):
    model = model_of(CONFIG)
    model.recompute = recompute
    ids = torch.arange(8 * 256).reshape(8, 256) % 500
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(ids, targets=ids)
    assert out.loss is not None
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    activations = sum(size for place, size in kept.items() if place not in parameters)
    size = sum(parameter.numel() for parameter in model.parameters())
    # gradients and two moments beside the parameters; the gradient of the logits is made in the backward pass
    real = 16 * size + activations + out.count * 500 * 4 if out.count is not None else 0
    estimate = training_bytes(CONFIG, 8 * 256, bytes_per_value=4, recompute=recompute)
    assert 0.6 < estimate / float(real) < 1.7


def test_estimate_of_arithmetic_is_that_of_the_products():
    model = model_of(CONFIG)
    ids = torch.arange(2 * 256).reshape(2, 256) % 500
    with FlopCounterMode(display=False) as counter:
        loss = model(ids, targets=ids).loss
        assert loss is not None
        loss.backward()
    # the counter knows no attention on a CPU; documents of length 0 have none
    products = {str(name): flops for name, flops in counter.get_flop_counts()["Global"].items()}
    assert products == {"aten.mm": flops_per_token(CONFIG, 0) * ids.numel()}
    # q K^T and its product with V, forward once and backward twice; half of the pairs are in the past
    pairs = 256 * 256 / 2
    attention = 3 * 2 * 2 * CONFIG.num_layers * CONFIG.hidden_size * pairs / 256
    assert flops_per_token(CONFIG, 256) == flops_per_token(CONFIG, 0) + attention


def fits(free: float, limit: int = 1024, **changes: Any) -> int:
    settings: dict[str, Any] = {"bytes_per_value": 4, "recompute": False} | changes

    def needed(blocks: int) -> float:
        return training_bytes(CONFIG, blocks * 256, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizing, "free_bytes", lambda device: int(free))
        return micro_batch_blocks(needed, torch.device("meta"), limit=limit, rows=256, block="256 tokens")


def test_micro_batch_grows_with_the_memory_up_to_the_limit():
    one = training_bytes(CONFIG, 256, bytes_per_value=4) / 0.6
    sizes = [fits(one * factor) for factor in (1.01, 1.8, 4, 40)]
    assert sizes == sorted(sizes) and sizes[0] == 1 and sizes[-1] > 8
    assert fits(one * 40, limit=5) == 4
    assert fits(one * 4, bytes_per_value=2) > fits(one * 4)
    assert fits(one * 4, recompute=True) > fits(one * 4)


def test_cpu_takes_no_more_than_it_can_use():
    blocks = micro_batch_blocks(lambda blocks: 1e6 * blocks, CPU, limit=10_000, rows=256, block="256 tokens")
    assert blocks == sizing._CPU_ROWS // 256


def test_model_that_does_not_fit_says_what_would_help():
    with pytest.raises(UserError) as caught:
        fits(1e6)
    line = str(caught.value)
    assert "a step of one block of 256 tokens needs about" in line and "run.recompute=true" in line


def test_memory_of_this_machine_is_found():
    assert 2**26 < free_bytes(CPU) < 2**46


def test_memory_is_guessed_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sizing.os.path, "exists", lambda path: False)
    assert 2**26 < free_bytes(CPU) < 2**46


@pytest.mark.parametrize("num_steps, advised", [(1, False), (10**9, True)])
def test_cost_is_announced_with_advice_where_it_is_long(
    num_steps: int, advised: bool, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "train")
    announce_cpu_cost(flops_per_token(CONFIG, 256) * 4096, "4,096 tokens", num_steps)
    assert "a step is 4,096 tokens and 0.0" in caplog.text
    assert ("--preset demo" in caplog.text) == advised


def test_announced_time_is_near_the_real_one():
    model = model_of(CONFIG)
    ids = torch.arange(8 * 256).reshape(8, 256) % 500
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        loss = model(ids, targets=ids).loss
        assert loss is not None
        loss.backward()
        seconds.append(time.perf_counter() - start)
    estimate = flops_per_token(CONFIG, 256) * ids.numel() / (measure_matmul_flops() * 0.6)
    assert 0.1 < estimate / min(seconds) < 10


def test_peak_is_unknown_on_a_cpu():
    assert peak_flops(CPU) is None


@pytest.mark.parametrize(
    "seconds, expected",
    [(0.25, "0.2 seconds"), (119, "119.0 seconds"), (600, "10 minutes"), (7200, "2 hours"), (864000, "10 days")],
)
def test_time_as_people_say_it(seconds: float, expected: str):
    assert human_time(seconds) == expected
