"""Which predictions become fakes in a step of stage 2, and how much of everything the whole step holds.

Both follow from the run's seed and the rows' places in its order, so every rank knows them for the whole step, whoever
gets the rows, and divides its sums by the right numbers. The generator and the discriminator learn from fakes of their
own, drawn apart, as published (specs/pixar.md, section 4.1).
"""

from dataclasses import dataclass

from pixelcore.adversarial import FakePlaces, draw_fakes, draw_shared_fakes
from pixelcore.masking import mix_seed
from pixelcore.rollout import spaced
from train.config import AdversarialSettings
from train.data.strips.patch_batches import PatchBatches, PatchMicroBatch

# streams of chance: places in the order that no row has
GENERATOR, DISCRIMINATOR, NOISE = -1, -2, -3


@dataclass(frozen=True)
class FakeStep:
    """first: place of the step's first row in the order of the run. num_targets: predictions that the likelihood
    counts; num_reals: real patches; and the predictions that become fakes, for the lesson of either."""

    first: int
    num_targets: int
    num_reals: int
    for_generator: FakePlaces
    for_discriminator: FakePlaces

    def part(self, places: FakePlaces, batch: PatchMicroBatch) -> FakePlaces:
        """Those of a micro-batch, whose strips count from 0."""
        begin = batch.positions[0] - self.first
        mine = (begin <= places.strips) & (places.strips < begin + len(batch.positions))
        return FakePlaces(places.strips[mine] - begin, places.before[mine], places.draws[mine])


def plan_fakes(settings: AdversarialSettings, batches: PatchBatches, step: int) -> FakeStep:
    """What a step holds, over all ranks."""
    rows, config = batches.rows_of(step), settings.objective
    places: list[FakePlaces] = []
    for stream in (GENERATOR, DISCRIMINATOR):
        seed = int(mix_seed(settings.run.seed, stream))
        if config.draw == "batch":
            shared = int(mix_seed(seed, step))
            places.append(draw_shared_fakes(rows.length_B, config.fakes_per_strip, settings.data.row_patches, shared))
        else:
            seeds_B = mix_seed(seed, rows.position_B)
            drawn = draw_fakes(rows.length_B, settings.model.start_vector, config.fakes_per_strip, seeds_B)
            places.append(spaced(drawn, config.rollout))
    num_targets = batches.num_targets(step)
    return FakeStep(int(rows.position_B[0]), num_targets, int(rows.length_B.sum()), places[0], places[1])
