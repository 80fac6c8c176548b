"""Batches of next patches: drawn rows end to end, each with its name, the same for any ranks and micro-batches."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from pixelcore.config import PixarConfig
from pixelcore.initialise import initialise
from pixelcore.models import MODELS
from render import RenderConfig, Renderer
from tests.train.conftest import small_text
from train.config import StripDataConfig
from train.data.order import BlockOrder
from train.data.split import split_files
from train.data.strips.drawing import pixels_of
from train.data.strips.patch_batches import PatchBatches, PatchMicroBatch, held_out_patches
from train.data.strips.row_store import RowStore, prepare_rows
from train.objectives import next_patch

RENDERER = Renderer(RenderConfig.named("pixar"))
DATA = StripDataConfig(row_patches=30, min_patches=5, workers=0)
ROWS = 10  # of a step


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[RowStore]:
    folder = tmp_path_factory.mktemp("batches")
    made = []
    for number, documents in enumerate((12, 8)):
        file = folder / f"{number}.txt"
        file.write_text(small_text(documents, seed=number + 1))
        made.append(prepare_rows([file], split_files([file], ()), "train", RENDERER, DATA, folder))
    return made


def batches(stores: list[RowStore], start_vector: bool = True, **more: Any) -> PatchBatches:
    order = BlockOrder(7, [len(store) for store in stores])
    settings: dict[str, Any] = {"rows_per_step": ROWS, "micro_batch_rows": 3} | more
    return PatchBatches(stores, order, RENDERER, start_vector=start_vector, **settings)


def micro_batches(of: PatchBatches, *steps: int) -> Iterator[PatchMicroBatch]:
    for step in steps:
        for index in range(of.per_rank):
            yield of.micro_batch(step, index, "cpu")


def strips(made: list[PatchMicroBatch]) -> dict[int, tuple[tuple[int, int], bytes]]:
    """By its position in the order: which row a strip is, and its pixels."""
    found = {}
    for batch in made:
        parts = np.split(batch.patches.pixels.numpy(), np.cumsum(batch.lengths)[:-1])
        for position, row, part in zip(batch.positions, batch.rows, parts, strict=True):
            found[position] = row, part.tobytes()
    return found


@pytest.mark.parametrize("start_vector", [False, True])
def test_a_step_asks_for_each_patch_after_those_before_it(start_vector: bool, stores: list[RowStore]):
    of = batches(stores, start_vector)
    source_B, row_B = of.order.take(ROWS, ROWS)
    made = list(micro_batches(of, 1))
    assert [row for batch in made for row in batch.rows] == list(zip(source_B.tolist(), row_B.tolist()))
    assert [position for batch in made for position in batch.positions] == list(range(ROWS, 2 * ROWS))
    for batch in made:
        drawn = [pixels_of(RENDERER(stores[source].text(row))) for source, row in batch.rows]
        assert np.array_equal(batch.patches.pixels.numpy(), np.concatenate(drawn))
        assert batch.lengths == tuple(map(len, drawn))
        firsts = np.cumsum([0, *batch.lengths[:-1]]).tolist()
        wanted = [
            first + place
            for first, length in zip(firsts, batch.lengths, strict=True)
            for place in range(0 if start_vector else 1, length)
        ]
        assert batch.patches.targets.tolist() == wanted, "all but the first, which only a start vector foretells"
        assert batch.count == len(wanted)
        assert not batch.patches.pixels[wanted[-1]].any(), "the black end patch is one of them"
    assert of.num_targets(1) == sum(batch.count for batch in made)


@pytest.mark.parametrize(("world", "micro_batch_rows"), [(2, 3), (1, 16), (7, 4)])
def test_ranks_share_out_the_step(world: int, micro_batch_rows: int, stores: list[RowStore]):
    alone = strips(list(micro_batches(batches(stores), 0, 1)))
    ranks = [batches(stores, world=world, rank=rank, micro_batch_rows=micro_batch_rows) for rank in range(world)]
    assert len({of.per_rank for of in ranks}) == 1, "ranks would not meet"
    assert {of.num_targets(1) for of in ranks} == {batches(stores).num_targets(1)}
    assert strips([batch for of in ranks for batch in micro_batches(of, 0, 1) if batch.rows]) == alone


def test_a_step_can_be_drawn_without_those_before_it(stores: list[RowStore]):
    straight = strips(list(micro_batches(batches(stores), 0, 1, 2)))
    assert strips(list(micro_batches(batches(stores), 2))).items() <= straight.items()


@pytest.mark.parametrize("start_vector", [False, True])
def test_a_filler_moves_no_parameter(start_vector: bool, stores: list[RowStore]):
    filler = batches(stores, start_vector, world=7, rank=6).micro_batch(0, 0, "cpu")
    assert (filler.count, filler.rows, filler.lengths, filler.positions) == (0, (), (), ())
    config = PixarConfig(
        hidden_size=16, num_layers=1, num_attention_heads=2, intermediate_size=16, start_vector=start_vector
    )
    model = MODELS["pixar"](config)
    initialise(model, 0)
    found = next_patch.loss(model, filler, torch.tensor(0.1), None)
    found.total.backward()
    assert found.reported.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters()), "a rank would wait for this one"


def test_held_out_rows_are_one_step_that_repeats(stores: list[RowStore]):
    of = held_out_patches(stores, RENDERER, start_vector=True, micro_batch_rows=4)
    first, again = (strips(list(micro_batches(of, 0))) for _ in range(2))
    assert first == again
    assert sorted(row for row, _ in first.values()) == [
        (source, row) for source, store in enumerate(stores) for row in range(len(store))
    ]
    assert of.texts(0, 3) == [stores[source].text(row) for source, row in list(zip(*of.order.take(0, 3)))]
