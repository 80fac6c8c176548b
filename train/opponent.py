"""A second model that learns against the first: the discriminator of stage 2, its optimizer, and its part of a step.

A step of stage 2 plays in three acts, and the loop calls them in this order (specs/pixar.md, section 4.1):

1. `prepare`, before anything moves. The generator predicts, some predictions become fakes, and the discriminator says
   how each of their pixels should change to look more real: the pull. Both losses' gradients at the generator's last
   layer are taken as well, and the ratio of their means is the balance. The layers below need no gradient here.
2. The generator's own pass, in the loop: its loss is that of the likelihood plus the product of fakes and pulls. A pull
   is the gradient of the adversarial loss at the fakes, so the gradient of the product is that of the adversarial loss
   itself, but the discriminator does not run again, and there is one loss and one backward pass for DDP to wait for.
3. `learn`: the discriminator's update, from the fakes of the first act, which are those of the generator before it
   moved.

All sums are over the whole step, and what they are divided by is known before: which predictions become fakes follows
from the run's seed and the rows' places in its order, so micro-batches and ranks do not change a step.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, autograd, nn
from torch.func import functional_call

from pixelcore.adversarial import FakePlaces, adversarial_loss, balance, fake_patches
from pixelcore.checkpoint import load_weights, moments_by_key, moments_from_keys
from pixelcore.initialise import initialise
from pixelcore.masking import mix_seed
from pixelcore.models.discriminator import ContextDiscriminator, Discriminator, PatchDiscriminator
from pixelcore.models.pixar import Pixar, PixarOutput
from pixelcore.models.pixar_trunk import PixarTrunk
from pixelcore.next_patches import NextPatches, arrange_next
from pixelcore.ops import Ops
from pixelcore.rollout import beside, roll_out
from train.config import AdversarialConfig, AdversarialSettings, PatchDiscriminatorConfig
from train.data.strips.patch_batches import PatchBatches, PatchMicroBatch
from train.distributed import Ranks
from train.fakes import NOISE, FakeStep, plan_fakes
from train.optimizer import AdamW, gather
from train.schedule import learning_rate_factor

WEIGHTS, MOMENTS = "discriminator.safetensors", "discriminator_optimizer.safetensors"  # its files of a checkpoint


@dataclass(frozen=True)
class Round:
    """A micro-batch of stage 2, as the generator's pass takes it.

    patches, count: see PatchMicroBatch; count is 0 in a filler, which has no fakes. fakes: soft or decided ones. rows:
    int64 [F], the rows of the generator's output whose predictions are judged; draws: float64 [F], which component of a
    mixture. pull: fp32 [F, A], the derivative of the total loss by the fakes.
    """

    patches: NextPatches
    count: int
    fakes: str
    rows: Tensor
    draws: NDArray[np.float64]
    pull: Tensor


@dataclass(frozen=True)
class _Lesson:
    """What the discriminator learns from a micro-batch: pixels [P, A] of real strips of these lengths, and fakes
    [F, A] with their places. behind: [P, A], the strips that the fakes stand in. positions: of the strips in the order
    of the run."""

    pixels: Tensor
    behind: Tensor
    lengths: tuple[int, ...]
    positions: tuple[int, ...]
    fakes: Tensor
    places: FakePlaces


def strength_at(config: AdversarialConfig, step: int) -> float:
    """How much the adversarial loss weighs at a step, counted from 0, before the balance."""
    return config.strength * min(1.0, (step + 1) / max(config.strength_warmup_steps, 1))


class Opponent:
    """The discriminator of a run. weights: of a run that goes on; else it begins beside the generator as it is now.
    keeps_shadows: see `AdamW`."""

    def __init__(
        self,
        settings: AdversarialSettings,
        generator: Pixar,
        batches: PatchBatches,
        ranks: Ranks,
        ops: Ops,
        weights: Mapping[str, Tensor] | None,
        keeps_shadows: bool = False,
    ) -> None:
        self.settings, self.config = settings, settings.objective
        self.generator, self.batches, self.ranks = generator, batches, ranks
        self.model = _make(settings, generator, ops)
        if weights is not None:
            load_weights(self.model, weights, WEIGHTS)
        self.model.compute_dtype = generator.compute_dtype
        self.model.to(ranks.device)
        self.optimizer = AdamW(self.model, settings.optimizer, ops, keeps_shadows)
        self.balance = torch.zeros((), device=ranks.device)  # of the newest step that is done
        # over the steps since the last report, this rank's share: adversarial loss, loss of reals and of fakes, shares
        # of reals and of fakes that are told right; and the steps
        self.sums = torch.zeros(6, dtype=torch.float64, device=ranks.device)
        self.norm, self.strength = torch.zeros(()), 0.0
        self._step = FakeStep(0, 0, 0, FakePlaces.none(), FakePlaces.none())  # the one that was prepared
        self._lessons: list[_Lesson] = []
        self._measured = self.balance
        self._in_step = self.sums[:5].clone()

    def lets_move(self, step: int) -> bool:
        """Whether the generator learns in a step: with the lag there is no balance yet in the first one."""
        return self.config.lag == 0 or step > 0

    # ---- before the generator's pass ---------------------------------------------------------------------------------

    def prepare(self, step: int) -> list[Round]:
        """This rank's micro-batches, with the pull of each. Nothing learns here, and nothing that is kept changes
        before `learn`, so a step that is not finished never was. Every rank must call it."""
        self._step, self._lessons = plan_fakes(self.settings, self.batches, step), []
        self._in_step = torch.zeros_like(self.sums[:5])
        rounds: list[Round] = []
        weight = self.generator.out_proj.weight
        gradients = torch.zeros(2, *weight.shape, dtype=torch.float32, device=weight.device)
        with _without_gradients(self.model):
            for index in range(self.batches.per_rank):
                batch = self.batches.micro_batch(step, index, self.ranks.device)
                rounds.append(self._play(batch, gradients))
        self.ranks.sum(gradients)
        self._measured = balance(gradients[0], gradients[1])
        used = self._measured if self.config.lag == 0 else self.balance
        # the gradients of ranks are averaged, and these are sums over the step
        factor = used * (strength_at(self.config, step) * self.ranks.world)
        return [replace(each, pull=each.pull * factor) for each in rounds]

    def _play(self, batch: PatchMicroBatch, gradients: Tensor) -> Round:
        """One micro-batch: its round with the pull before it is weighed, its lesson, its part of both gradients."""
        patches, how, start = batch.patches, self.config.fakes, self.settings.model.start_vector
        if not batch.count:
            nothing = patches.pixels[:0].float()
            return Round(patches, 0, how, torch.zeros(0, dtype=torch.int64), FakePlaces.none().draws, nothing)
        if self.config.draw == "batch":  # what would follow the end patch is judged too
            lengths = list(batch.lengths)
            patches = arrange_next(patches.pixels, lengths, start, real=lengths, device=patches.pixels.device)
        places = self._step.part(self._step.for_generator, batch)
        behind_PA, standing = batch.patches.pixels, places  # the strips that fakes stand in, and where among the rows
        if self.config.rollout > 1:
            behind_PA = roll_out(self.generator, behind_PA, batch.lengths, places, self.config.rollout)
            patches = beside(batch.patches.pixels, behind_PA, batch.lengths, start)
            standing = replace(places, strips=places.strips + len(batch.lengths))
        out, weight = self._predict(patches)
        assert out.loss is not None
        gradients[0] += autograd.grad(out.loss, weight, retain_graph=True)[0]

        rows_F = standing.rows(patches.packed.lengths, start)
        fakes_FA = fake_patches(out, rows_F, how, places.draws)
        answers_F2 = self.model.of_fakes(behind_PA, batch.lengths, fakes_FA, places)
        adversarial, _ = adversarial_loss(answers_F2, True, self._one_over(len(self._step.for_generator)))
        (pull_FA,) = autograd.grad(adversarial, fakes_FA)
        gradients[1] += autograd.grad(fakes_FA, weight, pull_FA, retain_graph=True)[0]
        self._in_step[0] += adversarial.detach()

        played = Round(patches, batch.count, how, rows_F, places.draws, pull_FA)

        learned = self._step.part(self._step.for_discriminator, batch)
        with torch.no_grad():
            if self.config.rollout > 1:
                behind_PA = roll_out(self.generator, batch.patches.pixels, batch.lengths, learned, self.config.rollout)
                patches = arrange_next(behind_PA, batch.lengths, start, real=batch.lengths, device=behind_PA.device)
                out = self.generator(patches)
            shown_FA = fake_patches(out, learned.rows(patches.packed.lengths, start), how, learned.draws)
        pixels_PA = batch.patches.pixels
        self._lessons.append(_Lesson(pixels_PA, behind_PA, batch.lengths, batch.positions, shown_FA, learned))
        return played

    def _predict(self, patches: NextPatches) -> tuple[PixarOutput, Tensor]:
        """What the generator says, with a graph that reaches its last layer and no further; and that layer's weight."""
        parameters = {name: parameter.detach() for name, parameter in self.generator.named_parameters()}
        weight = parameters["out_proj.weight"].requires_grad_()
        scale = self._one_over(self._step.num_targets)
        return functional_call(self.generator, parameters, (patches,), {"scale": scale}), weight

    def _one_over(self, count: int) -> Tensor:
        return torch.full((), 1 / max(count, 1), device=self.ranks.device)

    # ---- after the generator's update --------------------------------------------------------------------------------

    def learn(self, step: int) -> None:
        """The discriminator's update of the step that was prepared. Every rank must call it."""
        real_scale = self._one_over(self._step.num_reals)
        fake_scale = self._one_over(len(self._step.for_discriminator))
        for lesson in self._lessons:
            reals_P2, fakes_F2 = self._answers(lesson)
            real, _ = adversarial_loss(reals_P2, True, real_scale)
            fake, _ = adversarial_loss(fakes_F2, False, fake_scale)
            ((real + fake) / 2).backward()
            right = _votes(reals_P2, 1) * real_scale, _votes(fakes_F2, 0) * fake_scale
            self._in_step[1:] += torch.stack((real, fake, *right)).detach()
        self._lessons = []
        self._exchange()
        config = self.settings.discriminator
        schedule = replace(self.settings.schedule, warmup_steps=config.warmup_steps)
        rate = config.learning_rate * learning_rate_factor(schedule, step, self.settings.run.steps)
        self.norm = self.optimizer.step(rate).grad_norm
        self.balance.copy_(self._measured)
        self.strength = strength_at(self.config, step)
        self.sums[:5] += self._in_step
        self.sums[5] += 1

    def _answers(self, lesson: _Lesson) -> tuple[Tensor, Tensor]:
        """[P, 2] and [F, 2], of real patches and of fakes: one pass where both stand in the same strips."""
        if self.config.rollout == 1:
            return self.model(self._noised(lesson), lesson.lengths, lesson.fakes, lesson.places)
        reals_P2 = self.model.of_reals(self._noised(lesson), lesson.lengths)
        return reals_P2, self.model.of_fakes(lesson.behind, lesson.lengths, lesson.fakes, lesson.places)

    def _noised(self, lesson: _Lesson) -> Tensor:
        """The real patches, each pixel moved towards its opposite by a part of objective.real_noise that is drawn: soft
        fakes are then not known by their greys alone."""
        if not self.config.real_noise:
            return lesson.pixels
        seeds = mix_seed(int(mix_seed(self.settings.run.seed, NOISE)), list(lesson.positions))
        values = lesson.pixels.shape[1]
        moved_PA = torch.cat(
            [
                torch.rand(length, values, generator=torch.Generator().manual_seed(int(seed)))
                for length, seed in zip(lesson.lengths, seeds, strict=True)
            ]
        )
        return (lesson.pixels.float() / 255 - self.config.real_noise * moved_PA.to(lesson.pixels.device)).abs()

    def _exchange(self) -> None:
        """The sum of the ranks' gradients, in one message: they are parts of sums over the step."""
        if self.ranks.world == 1:
            return
        named = self.optimizer.named.values()
        flat = torch.cat([(torch.zeros_like(each) if each.grad is None else each.grad).flatten() for each in named])
        self.ranks.sum(flat)
        for parameter, part in zip(named, flat.split([each.numel() for each in named]), strict=True):
            parameter.grad = part.view_as(parameter)

    # ---- reports and checkpoints -------------------------------------------------------------------------------------

    def report(self) -> dict[str, float]:
        """Means since the last report, and what holds now. right: the share that is told right. Every rank must call
        it."""
        means = self._over_ranks()
        adversarial, real, fake, real_right, fake_right = (means[:5] / means[5]).tolist()
        self.sums.zero_()
        return {
            "adversarial_loss": adversarial,
            "balance": self.balance.item(),
            "strength": self.strength,
            "discriminator_real_loss": real,
            "discriminator_fake_loss": fake,
            "discriminator_real_right": real_right,
            "discriminator_fake_right": fake_right,
            "discriminator_grad_norm": self.norm.item(),
        }

    def _over_ranks(self) -> Tensor:
        total = self.sums.clone()
        self.ranks.sum(total[:5])
        return total

    def files(self) -> dict[str, dict[str, Tensor]]:
        """The discriminator's files of a checkpoint, by name."""
        weights = {name: gather(tensor) for name, tensor in self.model.state_dict().items()}
        return {WEIGHTS: weights, MOMENTS: moments_by_key(self.optimizer.gather())}

    def state(self) -> dict[str, Tensor]:
        """What it adds to a checkpoint's small tensors. Every rank must call it."""
        return {
            "opponent_sums": self._over_ranks(),
            "opponent_balance": self.balance,
            "opponent_updates": self.optimizer.num_updates,
            "opponent_skipped": self.optimizer.skipped,
            "opponent_skipped_in_a_row": self.optimizer.skipped_in_a_row,
        }

    def restore(self, moments: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Take over what `files` and `state` kept, whatever number of ranks wrote it."""
        self.optimizer.restore(moments_from_keys(moments, int(state["opponent_updates"].item())))
        self.optimizer.skipped.copy_(state["opponent_skipped"])
        self.optimizer.skipped_in_a_row.copy_(state["opponent_skipped_in_a_row"])
        self.balance.copy_(state["opponent_balance"])
        self.sums += state["opponent_sums"].to(self.sums.device)
        self.sums[:5] *= self.ranks.is_first  # the sum over all ranks was kept


def _make(settings: AdversarialSettings, generator: Pixar, ops: Ops) -> Discriminator:
    """The discriminator as it begins: what it shares with the generator a copy, the rest from the run's seed."""
    config = settings.discriminator
    if isinstance(config, PatchDiscriminatorConfig):
        model = PatchDiscriminator(settings.model, config.width, config.num_blocks, ops)
        initialise(model, settings.run.seed)
        return model
    model = ContextDiscriminator(settings.model, config.positions, ops)
    initialise(model, settings.run.seed)
    model.copy_from(generator)
    freeze_below(model, config.hot_layers)
    model.recompute = generator.recompute
    return model


def freeze_below(model: PixarTrunk, hot_layers: int) -> None:
    """Let only the last layers learn, and what comes after them; with 0, everything."""
    cold = len(model.layers) - hot_layers if hot_layers else 0
    below = tuple(f"layers.{index}." for index in range(cold))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (cold and name.startswith(("in_proj.", "start", *below))))


def _votes(logits_FO: Tensor, answer: int) -> Tensor:
    """How many rows are told to be of a class."""
    return (logits_FO.argmax(1) == answer).sum()


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Gradients pass through a model, and none are for its parameters."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
