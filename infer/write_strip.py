"""A model that writes strips at work: each patch is decided, becomes part of the strip, and the next one is asked for.

All prompts of a batch share one cache and one loop. In the first pass each of them brings all its patches, then one at
a time, so prompts of different lengths cost no padding; a strip that has ended leaves the batch and its memory. Strip i
draws its random numbers from seed + i and meets the others nowhere: it becomes what it would become alone. Without a
cache everything is read again for each patch, and the same strip comes out; that is the check of the cache. A model on
fused operations reads its prompts so and goes on in steps that ask the host nothing (`infer.step_loop`): the same
strips, whose patches come in groups.

What the model says of the next patch is a distribution, and how a patch is made of it is the decoding:

    threshold   each pixel is paper where that is likelier than ink; of a mixture those of its likeliest component. The
                only one for a regression, whose values become bytes
    mixture     a component is drawn, by its score, and its pixels are thresholded: whole words stay whole
    sample      a component is drawn if there are several, then each pixel by its own chance: what the model believes

A temperature divides what is drawn from, the scores and, for `sample`, the log-odds of each pixel. A patch that is
nearly black is the end of a text, as the black patch at the end of every strip in training was.

Source: specs/pixar.md, section 2.5; the original neither keeps what it has read nor stops.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infer.step_loop import StepLoop, ops_of_steps
from pixelcore.config import PixarConfig
from pixelcore.decode_step import PatchSteps
from pixelcore.errors import UserError
from pixelcore.models.pixar import Pixar, PixarOutput
from pixelcore.step_ops import MOST_ROWS, StepOps
from pixelcore.step_sampling import decide_patch, is_black, numbers_of_patch, patch_log_probability
from pixelcore.uniform import numbers_of

DECODINGS = ("threshold", "mixture", "sample")
BATCH = 32  # strips that share a cache


@dataclass(frozen=True, kw_only=True)
class WriteConfig:
    """How a strip is written on.

    decode, temperature: as the head of this file says; a temperature is refused where nothing is drawn. seed: prompt i
    draws with seed + i. max_patches: new ones, the end patch included; None is as many as the context holds. stop: end
    at a black patch; the original never does.
    """

    decode: str = "threshold"
    temperature: float = 1.0
    seed: int = 0
    max_patches: int | None = None
    stop: bool = True

    def __post_init__(self) -> None:
        if self.decode not in DECODINGS:
            raise UserError(f"decode = {self.decode!r} must be one of {', '.join(DECODINGS)}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(f"temperature = {self.temperature} must be a positive number")
        if self.temperature != 1 and self.decode == "threshold":
            raise UserError(
                f"temperature = {self.temperature} has no effect where nothing is drawn, as with decode = threshold: "
                "leave it out, or choose mixture or sample"
            )
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed = {self.seed} must be a whole number from 0 to 2^63 - 1")
        if self.max_patches is not None and self.max_patches < 1:
            raise UserError(f"max_patches = {self.max_patches} must be at least 1 new patch")


@dataclass(frozen=True)
class Written:
    """What was written behind one prompt.

    patches: uint8 [n, A], the end patch included where there is one. ended: whether it came to an end by itself, by a
    black patch. log_probability: natural, of these patches under the model at temperature 1; NaN of a regression, which
    has none.
    """

    patches: NDArray[np.uint8]
    ended: bool
    log_probability: float


@torch.no_grad()  # and no inference mode: the model may be in training, and keeps its table of angles
def write(
    model: Pixar,
    prompts: Sequence[NDArray[np.uint8]],
    config: WriteConfig | None = None,
    *,
    cached: bool = True,
    on_patch: Callable[[int, NDArray[np.uint8]], None] | None = None,
    batch: int = BATCH,
) -> list[Written]:
    """Write on from each prompt.

    prompts: uint8 [P, A] each, as of `infer.pixar.prompt_patches`; P may be 0 where the model has a start vector.
    cached: False reads the whole strip again for each patch. on_patch: called with the index of the prompt and each new
    patch, uint8 [A]. batch: prompts that run together; it changes the speed and not the result.
    Raises UserError, before anything is written, for a decoding that the head has not, for a prompt without patches
    where the model needs one, and where prompt and new patches exceed the context.
    """
    config = config or WriteConfig()
    check_decoding(model.config, config.decode)
    if batch < 1:
        raise UserError(f"batch = {batch} must be at least 1 prompt")
    strips = [
        _Strip(
            index,
            prompt,
            _room(model.config, index, len(prompt), config.max_patches),
            numbers_of((config.seed + index) % 2**63, numbers_of_patch(model.config.patch_values, config.decode)),
        )
        for index, prompt in enumerate(prompts)
    ]
    ops = ops_of_steps(model, instead=None if cached else "nothing is kept")
    if ops is not None:
        _run_steps(model, strips, config, on_patch, min(batch, MOST_ROWS), ops)
        return [strip.result() for strip in strips]
    for first in range(0, len(strips), batch):
        _run(model, strips[first : first + batch], config, cached, on_patch)
    return [strip.result() for strip in strips]


def check_decoding(model: PixarConfig, decode: str) -> None:
    """Raise UserError where the head has nothing that this decoding draws from."""
    if decode == "mixture" and model.head != "mixture":
        raise UserError(
            f"decode = mixture is for a mixture head, and the model's is {model.head}: use "
            f"{'threshold' if model.head == 'regression' else 'threshold or sample'}"
        )
    if decode == "sample" and model.head == "regression":
        raise UserError("decode = sample needs a head of chances, and the model's is a regression: use threshold")


def _room(model: PixarConfig, index: int, prompt: int, wanted: int | None) -> int:
    """New patches that a strip may have."""
    if not prompt and not model.start_vector:
        raise UserError(
            f"prompt {index + 1} has no patch, and the model no start vector to write from: give at least one character"
        )
    free = model.max_patches - prompt
    if free < (wanted or 1):
        raise UserError(
            f"prompt {index + 1} has {prompt} patches, and {wanted or 1} more do not fit the model's context of "
            f"{model.max_patches}: shorten the prompt{' or ask for fewer patches' if (wanted or 1) > 1 else ''}"
        )
    return wanted or free


def _run(
    model: Pixar,
    strips: list["_Strip"],
    config: WriteConfig,
    cached: bool,
    on_patch: Callable[[int, NDArray[np.uint8]], None] | None,
) -> None:
    """Write one batch to its end."""
    device = model.norm.weight.device
    cache = model.new_cache(len(strips), max(len(strip.prompt) + strip.room for strip in strips)) if cached else None
    active = strips
    while active:
        unread = [strip.unread if cached else strip.whole for strip in active]
        pixels = torch.from_numpy(np.concatenate(unread)).to(device)
        out = model.read(pixels, [len(patches) for patches in unread], cache, last_only=True)
        said = _Said.of(out, model.config, [strip.index for strip in active])
        chosen_BA = said.decide(config, [strip.numbers for strip in active])
        black_B = is_black(chosen_BA)
        if config.stop:
            chosen_BA[black_B] = 0
        log_probabilities = said.log_probability(chosen_BA).tolist()
        kept = []
        for row, strip in enumerate(active):
            patch = chosen_BA[row].numpy()
            strip.add(patch, log_probabilities[row])
            strip.ended = config.stop and bool(black_B[row])
            if not strip.is_done:
                kept.append(row)
            if on_patch is not None:
                on_patch(strip.index, patch)
        if len(kept) < len(active):
            active = [active[row] for row in kept]
            if cache is not None and active:
                cache.select(kept)


def _run_steps(
    model: Pixar,
    strips: list["_Strip"],
    config: WriteConfig,
    on_patch: Callable[[int, NDArray[np.uint8]], None] | None,
    batch_size: int,
    ops: StepOps,
) -> None:
    """Write all batches in steps that ask the host nothing (`infer.step_loop`). Those of one size share a cache."""
    capacity = max((len(strip.prompt) + strip.room for strip in strips), default=0)
    loop = None
    for first in range(0, len(strips), batch_size):
        batch = strips[first : first + batch_size]
        if loop is None or loop.steps.num_sequences != len(batch):
            cache = model.new_cache(len(batch), capacity)
            steps = PatchSteps(model, cache, ops, config.decode, config.stop, config.temperature)
            loop = StepLoop(steps)
        steps.cache.lengths = [0] * len(batch)
        pixels = torch.from_numpy(np.concatenate([strip.prompt for strip in batch])).to(steps.device)
        out = model.read(pixels, [len(strip.prompt) for strip in batch], steps.cache, last_only=True)
        seeds = [(config.seed + strip.index) % 2**63 for strip in batch]
        drawn = steps.begin(out.components, out.scores, seeds)
        for group in loop.groups(drawn, max(strip.room for strip in batch) - 1):
            for pixels_BA, log_probability_B, is_black_B in zip(*group, strict=True):
                _add_all(batch, pixels_BA.numpy(), log_probability_B.tolist(), is_black_B.tolist(), config, on_patch)
            if all(strip.is_done for strip in batch):
                break


def _add_all(
    batch: list["_Strip"],
    patches: NDArray[np.uint8],
    log_probabilities: list[float],
    are_black: list[bool],
    config: WriteConfig,
    on_patch: Callable[[int, NDArray[np.uint8]], None] | None,
) -> None:
    """What one step drew for each strip. What is drawn for one that is done is nothing."""
    for row, strip in enumerate(batch):
        if strip.is_done:
            continue
        if not math.isfinite(log_probabilities[row]):
            raise UserError(no_numbers(strip.index))
        strip.add(patches[row], log_probabilities[row])
        strip.ended = config.stop and are_black[row]
        if on_patch is not None:
            on_patch(strip.index, patches[row])


class _Strip:
    """One prompt on its way."""

    def __init__(self, index: int, prompt: NDArray[np.uint8], room: int, numbers: Iterator[Tensor]) -> None:
        self.index = index
        self.prompt = prompt
        self.room = room  # new patches that it may have
        self.new: list[NDArray[np.uint8]] = []
        self.numbers = numbers  # that each patch is drawn with
        self.ended = False
        self._log_probability = 0.0

    @property
    def unread(self) -> NDArray[np.uint8]:
        """What the model has not read yet."""
        return self.new[-1][None] if self.new else self.prompt

    @property
    def is_done(self) -> bool:
        return self.ended or len(self.new) == self.room

    @property
    def whole(self) -> NDArray[np.uint8]:
        return np.concatenate([self.prompt, *(patch[None] for patch in self.new)])

    def add(self, patch: NDArray[np.uint8], log_probability: float) -> None:
        self.new.append(patch)
        self._log_probability += log_probability

    def result(self) -> Written:
        return Written(patches=np.stack(self.new), ended=self.ended, log_probability=self._log_probability)


# ------------------------------------------------------------------ from what is said to a patch


@dataclass(frozen=True)
class _Said:
    """What the model says of the next patch of each strip, on the host and wide: components fp64 [B, Z, A] and the
    log-weights of the components [B, Z]; of a regression, values from 0 to 1 and no weights."""

    components_BZA: Tensor
    log_weights_BZ: Tensor | None

    @staticmethod
    def of(out: PixarOutput, config: PixarConfig, indices: Sequence[int]) -> "_Said":
        """Raises UserError where a number is not finite: a model that computed NaN says nothing."""
        components_BZA = out.components.to("cpu", torch.float64)
        finite_B = components_BZA.isfinite().flatten(1).all(1)
        if out.scores is not None:
            finite_B &= out.scores.to("cpu").isfinite().all(1)
        if not finite_B.all():
            raise UserError(no_numbers(indices[finite_B.tolist().index(False)]))
        if config.head == "regression":
            return _Said(components_BZA if config.values == "published" else (components_BZA + 1) / 2, None)
        if out.scores is None:
            return _Said(components_BZA, torch.zeros(len(components_BZA), 1, dtype=torch.float64))
        return _Said(components_BZA, out.scores.to("cpu", torch.float64).log_softmax(1))

    def decide(self, config: WriteConfig, numbers: Sequence[Iterator[Tensor]]) -> Tensor:
        """The patch of each strip, uint8 [B, A]."""
        if self.log_weights_BZ is None:
            return (self.components_BZA[:, 0] * 255).round().clamp(0, 255).to(torch.uint8)
        uniform_BA = torch.stack([next(one) for one in numbers])
        return decide_patch(self.components_BZA, self.log_weights_BZ, config.decode, config.temperature, uniform_BA)

    def log_probability(self, patches_BA: Tensor) -> Tensor:
        """Of these patches at temperature 1: fp64 [B]."""
        if self.log_weights_BZ is None:
            return torch.full((len(patches_BA),), math.nan)
        return patch_log_probability(self.components_BZA, self.log_weights_BZ, patches_BA)


def no_numbers(index: int) -> str:
    """What to say of a prompt for which the model's numbers are not finite."""
    return (
        f"the model gave NaN or infinite values for prompt {index + 1}: its weights are damaged or the dtype is too "
        "narrow; check the training's loss, or use --dtype float32"
    )
