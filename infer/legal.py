"""Legal decoding: writing only what the renderer can draw.

A model of pixels may paint anything, and some of what it paints is no text. Here it may only choose: of all patches
that some text would put next on the strip it gets the likeliest ones (a beam), or one that is drawn in proportion to
what the model gives them. What is written is legible by construction, and its text is known exactly, with no reader
between: each strip that comes out is the drawing of its text, compared pixel by pixel.

What that hides is reported: how much of the model's probability was on patches that can stand there, patch by patch.
The rest is on what is no text; a model that would never write a word by itself can look literate through this filter.

Hypotheses of all prompts share one cache. After each patch its sequences are put in the order of those that survive.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from infer.legal_grammar import Grammar, Option, Story
from infer.legal_pieces import PieceGrammar
from infer.legal_running import RunningGrammar
from infer.legal_said import Said
from pixelcore.errors import UserError
from pixelcore.models.pixar import Pixar, PixarOutput
from render import Renderer

BATCH = 8  # prompts that share a cache, each with its beam
BEAM = 4


@dataclass(frozen=True, kw_only=True)
class LegalConfig:
    """What may be written, and how it is chosen.

    max_patches: new ones, the end patch included. beam: hypotheses that are kept after each patch. temperature: 0 is
    the beam; above, each patch is drawn from what the model says at this temperature, given that it is legal, and there
    is one hypothesis. seed: prompt i draws with seed + i. stop: whether the text may end before max_patches.
    alphabet: the characters that may be written; None is the printable ASCII of the first font. pieces: instead, the
    strings that may be written, one after another, each from a patch edge.
    """

    max_patches: int
    beam: int = BEAM
    temperature: float = 0.0
    seed: int = 0
    stop: bool = True
    alphabet: str | None = None
    pieces: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.max_patches < 1:
            raise UserError(f"max_patches = {self.max_patches} must be at least 1 new patch")
        if self.beam < 1:
            raise UserError(f"beam = {self.beam} must be at least 1 hypothesis")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"temperature = {self.temperature} must be 0 (a beam) or a positive number")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed = {self.seed} must be a whole number from 0 to 2^63 - 1")
        if self.alphabet is not None and self.pieces is not None:
            raise UserError("alphabet and pieces: give one of them")
        if self.pieces is not None:
            object.__setattr__(self, "pieces", tuple(self.pieces))


@dataclass(frozen=True, kw_only=True)
class LegalWritten:
    """What was written behind one prompt.

    text: what the patches say, of several that draw the same the most usual one; where it was cut by max_patches, its
    last letter may be cut as well. ambiguous: another text that was allowed draws the same. patches: uint8 [n, A], the
    end patch included where there is one. log_probability: nats, of these patches under the model at temperature 1.
    legal_mass: of each patch, the share of the model's probability that was on patches that could stand there.
    dropped: hypotheses that scored better and that the renderer did not draw as they were written.
    """

    text: str
    ambiguous: bool
    patches: NDArray[np.uint8]
    ended: bool
    log_probability: float
    legal_mass: tuple[float, ...]
    dropped: int = 0

    @property
    def non_text_mass(self) -> float:
        """Mean over the patches of the share of probability that was on what is no text."""
        return 1 - sum(self.legal_mass) / len(self.legal_mass)


def legal_grammar(renderer: Renderer, config: LegalConfig) -> Grammar:
    """What may be written, ready for `write_legal`; making it takes longer than a call, so keep it for the next one.

    Raises UserError for strips that are not binary, and for pieces or characters that cannot be written.
    """
    if renderer.config.color != "binary":
        raise UserError(
            f"render.color = {renderer.config.color}: legal decoding compares pixels that are ink or paper: use a "
            "model of binary strips"
        )
    if config.pieces is not None:
        return PieceGrammar(renderer, config.pieces, config.stop)
    return RunningGrammar(renderer, config.alphabet, config.stop)


@torch.no_grad()
def write_legal(
    model: Pixar,
    renderer: Renderer,
    prompts: Sequence[NDArray[np.uint8]],
    config: LegalConfig,
    *,
    texts: Sequence[str] | None = None,
    grammar: Grammar | None = None,
    on_patch: Callable[[int, NDArray[np.uint8]], None] | None = None,
    batch: int = BATCH,
) -> list[LegalWritten]:
    """Write on from each prompt what the renderer can draw.

    prompts: uint8 [P, A] each, as of `infer.pixar.prompt_patches`; P may be 0 where the model has a start vector.
    texts: what they say, where it is known: then running text goes on in the very column where the renderer would
    continue it; without, in any column where it could after some last letter. grammar: of `legal_grammar` with this
    configuration. on_patch: called with the index of the prompt and each patch, uint8 [A], that no hypothesis
    contradicts any more. batch: prompts that run together; it changes the speed and not the result.
    Raises UserError, before anything is written, for a model, renderer and prompts that do not fit, and for a prompt
    behind which nothing can be written.
    """
    _check(model, renderer, prompts, config)
    if texts is not None and len(texts) != len(prompts):
        raise ValueError(f"{len(texts)} texts for {len(prompts)} prompts")
    grammar = grammar or legal_grammar(renderer, config)
    found: list[LegalWritten] = []
    for first in range(0, len(prompts), batch):
        beams = [
            _Beam(index, grammar, prompts[index], None if texts is None else texts[index], config)
            for index in range(first, min(first + batch, len(prompts)))
        ]
        _run(model, beams, [prompts[beam.index] for beam in beams], config, on_patch)
        for beam in beams:
            found.append(beam.result())
            if on_patch is not None:
                for patch in found[-1].patches[beam.told :]:
                    on_patch(beam.index, patch)
    return found


def _check(model: Pixar, renderer: Renderer, prompts: Sequence[NDArray[np.uint8]], config: LegalConfig) -> None:
    if model.config.head == "regression":
        raise UserError(
            'head = "regression" gives no probabilities, so there is nothing to choose legal patches by: use a model '
            'with head = "bernoulli" or "mixture"'
        )
    drawn = (renderer.config.height, renderer.config.patch_width)
    read = (model.config.patch_height, model.config.patch_height * model.config.patch_length)
    if drawn != read:
        raise UserError(
            f"the renderer draws patches of {drawn[0]} x {drawn[1]} pixels and the model reads {read[0]} x {read[1]}: "
            "use the model's own renderer"
        )
    for index, prompt in enumerate(prompts):
        if not len(prompt) and not model.config.start_vector:
            raise UserError(
                f"prompt {index + 1} is empty, and the model has no start vector to write from: give at least one patch"
            )
        if len(prompt) + config.max_patches > model.config.max_patches:
            raise UserError(
                f"prompt {index + 1} has {len(prompt)} patches and {config.max_patches} are to be written, the model's "
                f"max_patches is {model.config.max_patches}: shorten the prompt or ask for fewer patches"
            )


def _run(
    model: Pixar,
    beams: list["_Beam"],
    prompts: list[NDArray[np.uint8]],
    config: LegalConfig,
    on_patch: Callable[[int, NDArray[np.uint8]], None] | None,
) -> None:
    """Write behind the prompts of one batch."""
    device = model.norm.weight.device
    lengths = [len(prompt) for prompt in prompts]
    cache = model.new_cache(len(prompts), max(lengths) + config.max_patches)
    out = model.read(torch.from_numpy(np.concatenate(prompts)).to(device), lengths, cache, last_only=True)
    active = beams
    for beam, row in zip(active, range(len(beams)), strict=True):
        beam.alive[0].row = row
    for _ in range(config.max_patches):
        for beam in active:
            beam.step(out, on_patch)
        active = [beam for beam in active if beam.alive]
        alive = [one for beam in active for one in beam.alive]
        if not alive or len(alive[0].patches) == config.max_patches:
            return
        cache.select([one.row for one in alive])
        for row, one in enumerate(alive):
            one.row = row
        newest = torch.from_numpy(np.stack([one.patches[-1] for one in alive])).to(device)
        out = model.read(newest, [1] * len(alive), cache, last_only=True)


@dataclass
class _Hypothesis:
    """One way to write on. row: of the cache, and of what the model said last."""

    state: int | None
    patches: tuple[NDArray[np.uint8], ...] = ()
    log_probability: float = 0.0
    legal_mass: tuple[float, ...] = ()
    row: int = 0

    def followed_by(self, option: Option, log_probability: float, legal_mass: float) -> "_Hypothesis":
        """The hypothesis with one more patch."""
        return _Hypothesis(
            option.state,
            (*self.patches, option.patch),
            self.log_probability + log_probability,
            (*self.legal_mass, legal_mass),
            self.row,
        )


class _Beam:
    """The hypotheses behind one prompt."""

    def __init__(
        self, index: int, grammar: Grammar, prompt: NDArray[np.uint8], text: str | None, config: LegalConfig
    ) -> None:
        self.index, self._grammar, self._config = index, grammar, config
        self._prompt, self._text = prompt, text
        self._random = np.random.default_rng(config.seed + index)
        self.told = 0
        self.alive = [_Hypothesis(grammar.start(prompt, text))]
        self.ended: list[_Hypothesis] = []

    def step(self, out: PixarOutput, on_patch: Callable[[int, NDArray[np.uint8]], None] | None) -> None:
        """Put one more patch behind each hypothesis and keep the best ones."""
        found = [new for one in self.alive for new in self._continued(one, out)]
        found.sort(key=lambda one: -one.log_probability)
        found = found[: self._config.beam]
        self.ended += [one for one in found if one.state is None]
        self.ended.sort(key=lambda one: -one.log_probability)
        # what goes on only becomes less likely
        best = self.ended[0].log_probability if self.ended else -math.inf
        self.alive = [one for one in found if one.state is not None and one.log_probability > best]
        if on_patch is not None:
            candidates = self.alive + (self.ended[:1] if self.ended else [])
            while candidates and all(len(one.patches) > self.told for one in candidates):
                newest = candidates[0].patches[self.told]
                if any(not np.array_equal(one.patches[self.told], newest) for one in candidates):
                    break
                self.told += 1
                on_patch(self.index, newest)

    def _continued(self, one: _Hypothesis, out: PixarOutput) -> list[_Hypothesis]:
        assert one.state is not None
        said = Said.of_row(out, one.row)
        options = self._grammar.options(one.state, said)
        mass = min(1.0, math.exp(options.log_mass))
        if options.log_mass == -math.inf:
            return []
        if not self._config.temperature:
            return [one.followed_by(new, new.log_probability, mass) for new in options.best(self._config.beam)]
        if self._config.temperature != 1:
            options = self._grammar.options(one.state, Said.of_row(out, one.row, self._config.temperature))
        drawn = options.draw(self._random)
        return [one.followed_by(drawn, float(said.log_probability(drawn.patch[None])[0]), mass)]

    def result(self) -> LegalWritten:
        """The likeliest hypothesis that is what the renderer draws."""
        dropped = 0
        for one in sorted(self.ended + self.alive, key=lambda one: -one.log_probability):
            story = self._story(one)
            if story is not None:
                return LegalWritten(
                    text=story.text,
                    ambiguous=story.ambiguous,
                    patches=np.stack(one.patches),
                    ended=one.state is None,
                    log_probability=one.log_probability,
                    legal_mass=one.legal_mass,
                    dropped=dropped,
                )
            dropped += 1
        raise UserError(
            f"prompt {self.index + 1}: nothing that may be written can stand behind it ({dropped} hypotheses were not "
            "what the renderer draws): allow more characters or pieces, or widen the beam"
        )

    def _story(self, one: _Hypothesis) -> Story | None:
        ended = one.state is None
        patches = one.patches[:-1] if ended else one.patches
        values = len(one.patches[0])
        return self._grammar.story(self._prompt, self._text, np.array(patches, np.uint8).reshape(-1, values), ended)
