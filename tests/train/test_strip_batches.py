"""Batches of strips: the same step for any ranks, micro-batches and processes that draw, and again after a resume."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pixelcore.config import ViTMAEConfig
from pixelcore.errors import UserError
from pixelcore.initialise import initialise
from pixelcore.masking import draw_masks, mix_seed
from pixelcore.models import MODELS
from render import RenderConfig, Renderer
from tests.train.conftest import small_text
from train.config import MaskedPatchesConfig, StripDataConfig
from train.data.order import BlockOrder
from train.data.split import split_files
from train.data.strips.drawing import pixels_of
from train.data.strips.row_store import RowStore, prepare_rows
from train.data.strips.strip_batches import StripBatches, StripMicroBatch, held_out_batches

RENDERER = Renderer(RenderConfig(fonts=()))
DATA = StripDataConfig(row_patches=40, min_patches=5, workers=0)
PACKED = MaskedPatchesConfig()
ROWS = 10  # of a step


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[RowStore]:
    folder = tmp_path_factory.mktemp("batches")
    made = []
    for number, documents in enumerate((30, 12)):
        file = folder / f"{number}.txt"
        file.write_text(small_text(documents, seed=number + 1))
        made.append(prepare_rows([file], split_files([file], ()), "train", RENDERER, DATA, folder))
    return made


def batches(stores: list[RowStore], objective: MaskedPatchesConfig = PACKED, **more: Any) -> StripBatches:
    order = BlockOrder(7, [len(store) for store in stores], more.pop("weights", None))
    settings: dict[str, Any] = {"seed": 7, "rows_per_step": ROWS, "micro_batch_rows": 3} | more
    return StripBatches(stores, order, RENDERER, objective, **settings)


def micro_batches(of: StripBatches, *steps: int) -> Iterator[StripMicroBatch]:
    for step in steps:
        for index in range(of.per_rank):
            yield of.micro_batch(step, index, "cpu")


def same(one: StripMicroBatch, other: StripMicroBatch) -> bool:
    names = ("pixels", "kept_rows", "kept_places", "restore", "places", "scored_rows", "scored")
    return one.rows == other.rows and all(
        torch.equal(getattr(one.patches, name), getattr(other.patches, name)) for name in names
    )


def strips(of: list[StripMicroBatch]) -> dict[int, tuple[bytes, list[int]]]:
    """By its name within the step, the pixels of each strip and the places that are hidden."""
    found = {}
    for batch in of:
        whole = batch.patches.decoded
        hidden = set(batch.patches.scored.tolist())
        first = 0
        for document, rows in enumerate(whole.lengths):
            count = rows - 1
            name = int(whole.documents[int(whole.offsets[document])])
            places = [place for place in range(count) if first + place in hidden]
            found[name] = (batch.patches.pixels[first : first + count].numpy().tobytes(), places)
            first += count
    return found


def test_a_micro_batch_holds_the_drawn_rows_of_the_order_end_to_end(stores: list[RowStore]):
    of = batches(stores)
    source_B, row_B = of.order.take(ROWS, ROWS)
    made = list(micro_batches(of, 1))
    assert [row for batch in made for row in batch.rows] == list(zip(source_B.tolist(), row_B.tolist()))
    for batch in made:
        drawn = [pixels_of(RENDERER(stores[source].text(row))) for source, row in batch.rows]
        assert batch.patches.pixels.dtype == torch.uint8
        assert np.array_equal(batch.patches.pixels.numpy(), np.concatenate(drawn))
        assert batch.patches.num_patches == [len(pixels) for pixels in drawn]
    # row-major within a patch: the black end patch apart, row r of a patch is row r of the strip
    strip = RENDERER(stores[source_B[0]].text(int(row_B[0])))
    assert np.array_equal(made[0].patches.pixels[1].numpy().reshape(16, 16), strip.pixels[:, 16:32])


@pytest.mark.parametrize("counts", ["packed", "paper"])
@pytest.mark.parametrize("rule", ["random", "span", "span-m4"])
def test_masks_follow_the_seed_and_the_position_alone(stores: list[RowStore], rule: str, counts: str):
    of = batches(stores, MaskedPatchesConfig(rule=rule, counts=counts))
    made = list(micro_batches(of, 2))
    found = strips(made)
    source_B, row_B = of.order.take(2 * ROWS, ROWS)
    for place in range(ROWS):
        length = int(stores[source_B[place]].num_patches[row_B[place]])
        padded = 40 if counts == "paper" else None
        mask = draw_masks(rule, [length], mix_seed(7, [2 * ROWS + place]), 0.25, padded)[0, :length]
        assert found[place * 40][1] == np.flatnonzero(mask).tolist()
    assert of.num_targets(2) == sum(batch.count for batch in made) == sum(len(batch.patches.scored) for batch in made)


def test_masks_are_new_in_every_epoch(stores: list[RowStore]):
    of = batches(stores, rows_per_step=sum(map(len, stores)))
    first, second = list(micro_batches(of, 0)), list(micro_batches(of, 1))
    by_row = [{row: 0 for batch in made for row in batch.rows} for made in (first, second)]
    assert by_row[0].keys() == by_row[1].keys() and len(by_row[0]) == of.rows_per_step
    assert {places for _, places in _by_pixels(first)} != {places for _, places in _by_pixels(second)}


def _by_pixels(made: list[StripMicroBatch]) -> set[tuple[bytes, tuple[int, ...]]]:
    return {(pixels, tuple(places)) for pixels, places in strips(made).values()}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_gets_the_same_batches(stores: list[RowStore], workers: int):
    straight, resumed = batches(stores), batches(stores, workers=workers)
    expected = list(micro_batches(straight, 0, 1, 2, 3))
    per_step = straight.per_rank
    try:
        found = list(micro_batches(resumed, 2, 3))
        assert all(map(same, found, expected[2 * per_step :]))
        # back to the beginning, and into the midst of a step
        assert all(map(same, micro_batches(resumed, 0, 1), expected))
        assert same(resumed.micro_batch(3, 1, "cpu"), expected[3 * per_step + 1])
        resumed.close()
        assert same(resumed.micro_batch(1, 0, "cpu"), expected[per_step])
    finally:
        resumed.close()


@pytest.mark.parametrize(("world", "micro_batch_rows"), [(2, 3), (3, 2), (1, 10), (1, 16), (7, 4)])
def test_ranks_share_out_the_step(stores: list[RowStore], world: int, micro_batch_rows: int):
    alone = strips(list(micro_batches(batches(stores), 0, 1)))
    ranks = [batches(stores, world=world, rank=rank, micro_batch_rows=micro_batch_rows) for rank in range(world)]
    assert len({of.per_rank for of in ranks}) == 1, "ranks would not meet"
    assert {of.num_targets(1) for of in ranks} == {batches(stores).num_targets(1)}
    made = [batch for of in ranks for batch in micro_batches(of, 0, 1) if batch.rows]
    rows = [row for of in ranks for batch in micro_batches(of, 1) for row in batch.rows]
    assert sorted(rows) == sorted(row for batch in micro_batches(batches(stores), 1) for row in batch.rows)
    assert strips(made) == alone


def test_a_filler_moves_no_parameter(stores: list[RowStore]):
    filler = batches(stores, world=7, rank=6).micro_batch(0, 0, "cpu")
    assert (filler.count, filler.rows) == (0, ())
    config = ViTMAEConfig(
        hidden_size=16,
        num_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        decoder_hidden_size=16,
        decoder_num_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        num_channels=1,
    )
    model = MODELS["vit_mae"](config)
    initialise(model, 0)
    out = model(filler.patches, scale=torch.tensor(0.1))
    out.loss.backward()
    assert (out.loss.item(), int(out.count)) == (0, 0)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters()), "a rank would wait for this one"


def test_weights_mix_sources(stores: list[RowStore]):
    of = batches(stores, weights=[1.0, 3.0], rows_per_step=100, micro_batch_rows=100)
    sources = [source for step in range(4) for source, _ in of.micro_batch(step, 0, "cpu").rows]
    assert sources.count(1) == pytest.approx(300, abs=25)


def test_held_out_batches_are_one_step_under_fixed_masks(stores: list[RowStore]):
    of = held_out_batches(stores, RENDERER, PACKED, micro_batch_rows=4, workers=0)
    first, again = list(micro_batches(of, 0)), list(micro_batches(of, 0))
    assert sorted(row for batch in first for row in batch.rows) == sorted(
        (source, row) for source, store in enumerate(stores) for row in range(len(store))
    )
    assert all(map(same, first, again))
    other = held_out_batches(stores, RENDERER, PACKED, micro_batch_rows=5, world=2, rank=0)
    assert strips(list(micro_batches(other, 0))).items() <= strips(first).items()


def test_a_renderer_that_draws_other_lengths_is_refused(stores: list[RowStore]):
    of = batches(stores)
    of.micro_batch(0, 0, "cpu")
    changed = Renderer(replace(RENDERER.config, layout="continuous", word_gap="space"))
    wrong = StripBatches(stores, of.order, changed, PACKED, seed=7, rows_per_step=ROWS, micro_batch_rows=3)
    with pytest.raises(UserError, match=r"row \d+: it is drawn in \d+ patches, not \d+: the renderer has changed"):
        list(micro_batches(wrong, 0))


def test_rows_are_drawn_before_they_are_asked_for(stores: list[RowStore], monkeypatch: pytest.MonkeyPatch):
    given: list[int] = []
    text = RowStore.text
    monkeypatch.setattr(RowStore, "text", lambda store, row: given.append(row) or text(store, row))
    for workers, ahead in ((0, 0), (1, 6)):
        of = batches(stores, workers=workers)
        given.clear()
        taken = of.micro_batch(0, 0, "cpu").rows
        of.close()
        assert len(given) >= len(taken) + ahead if ahead else len(given) == len(taken)
