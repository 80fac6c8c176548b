"""Legal decoding: nothing but what the renderer draws, the likeliest of it, and how likely all of it is.

The judge is brute force: all texts of a few letters, drawn by the renderer.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from infer.legal import LegalConfig, LegalWritten, legal_grammar, write_legal
from infer.legal_lattice import Lattice
from infer.legal_letters import LetterAutomaton
from infer.legal_running import RunningGrammar
from infer.legal_said import Said
from pixelcore.config import PixarConfig
from pixelcore.errors import UserError
from pixelcore.models.pixar import Pixar
from render import RenderConfig, Renderer
from render.prompt import align_prompt

LETTERS = "abeilnopstuw "


def make_model(seed: int = 0, **changes: Any) -> Pixar:
    """A model whose predictions differ from patch to patch."""
    base: dict[str, Any] = {
        "num_layers": 1,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "patch_length": 1,
        "max_patches": 32,
        "start_vector": True,
        "head": "mixture",
        "num_components": 3,
    }
    model = Pixar(PixarConfig(**(base | changes)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + float("norm" in name))
    return model.eval()


def make_renderer(**changes: Any) -> Renderer:
    return Renderer(RenderConfig.named("pixar", **({"patch_width": 8} | changes)))


def patches_of(pixels: np.ndarray, width: int) -> np.ndarray:
    """[P, A] of a picture."""
    return np.ascontiguousarray(pixels.reshape(len(pixels), -1, width).swapaxes(0, 1)).reshape(-1, len(pixels) * width)


def prompt_of(renderer: Renderer, text: str) -> np.ndarray:
    return patches_of(align_prompt(renderer(text)), renderer.config.patch_width)


def log_probability(model: Pixar, prompt: np.ndarray, patches: np.ndarray) -> float:
    """Of patches behind a prompt, from one pass over all of them."""
    strip = torch.from_numpy(np.concatenate([prompt, patches]))
    with torch.no_grad():
        out = model.read(strip[:-1], [len(strip) - 1])
    first = len(prompt) - 1 + int(model.config.start_vector)
    return sum(float(Said.of_row(out, first + i).log_probability(patch[None])[0]) for i, patch in enumerate(patches))


def texts_of(alphabet: str, longest: int) -> list[str]:
    return ["".join(text) for n in range(longest + 1) for text in itertools.product(alphabet, repeat=n)]


def check_drawn(renderer: Renderer, prompt: str, written: LegalWritten) -> None:
    """What was written is what the renderer draws, moved as the prompt was, end patch and all."""
    whole = renderer(f"{prompt} {written.text}" if prompt else written.text, max_patches=1000)
    width, count = renderer.config.patch_width, len(written.patches) - written.ended
    drawn = whole.pixels[:, :-width]
    if prompt:
        spaced = renderer(prompt).pixels[:, :-width]
        was, now = (np.flatnonzero((pixels == 0).any(0))[-1] for pixels in (spaced, align_prompt(renderer(prompt))))
        drawn = np.roll(np.pad(drawn, ((0, 0), (0, 4 * width)), constant_values=255), now - was, axis=1)
        drawn = drawn[:, spaced.shape[1] :]
    wanted = written.patches[:count]
    drawn = np.pad(drawn, ((0, 0), (0, width * count)), constant_values=255)[:, : count * width]
    assert np.array_equal(patches_of(drawn, width), wanted)
    if written.ended:
        assert not written.patches[-1].any()


# ------------------------------------------------------------------ what may be written


def drawable(renderer: Renderer, alphabet: str, longest: int, count: int) -> np.ndarray:
    """The first patches of the strips of all texts so long, each once: [N, count, A], of one with its end patch among
    them the rest black."""
    width = renderer.config.patch_width
    found: dict[bytes, None] = {}
    for text in texts_of(alphabet, longest):
        patches = patches_of(renderer(text).pixels, width)[:count]
        found[np.pad(patches, ((0, count - len(patches)), (0, 0))).tobytes()] = None
    return np.array([np.frombuffer(strip, np.uint8) for strip in found]).reshape(len(found), count, -1)


@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize(("alphabet", "longest"), [("il ", 4), ("aT", 3)])
def test_the_first_patch_is_chosen_from_all_that_texts_draw(components, alphabet, longest):
    renderer = make_renderer()
    random = np.random.default_rng(0)
    scores = torch.from_numpy(random.normal(size=components)) if components > 1 else None
    said = Said(torch.from_numpy(random.normal(size=(components, 64))), scores)
    grammar = RunningGrammar(renderer, alphabet, stop=True)
    options = grammar.options(grammar.start(np.zeros((0, 64), np.uint8), None), said)
    patches = drawable(renderer, alphabet, longest, 1)[:, 0]
    log_N = np.sort(said.log_probability(patches))[::-1]
    assert options.log_mass == pytest.approx(np.logaddexp.reduce(log_N), abs=1e-6)
    best = options.best(len(patches) + 1)
    assert {option.patch.tobytes() for option in best} == {patch.tobytes() for patch in patches}
    np.testing.assert_allclose([option.log_probability for option in best], log_N, atol=1e-9)
    np.testing.assert_allclose([option.log_probability for option in options.best(4)], log_N[:4], atol=1e-9)
    drawn = [options.draw(random) for _ in range(300)]
    share = np.mean([option.log_probability >= log_N[1] - 1e-9 for option in drawn])
    expected = np.exp(log_N[:2] - options.log_mass).sum()
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 300) + 1e-3
    for option in drawn[:3]:
        assert option.log_probability == pytest.approx(said.log_probability(option.patch[None])[0])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("head", [{}, {"head": "bernoulli", "num_components": 1}])
def test_a_wide_beam_finds_the_likeliest_of_all_strips(seed, head):
    renderer, model = make_renderer(), make_model(seed, **head)
    nothing = np.zeros((0, 64), np.uint8)
    strips = drawable(renderer, "aW ", 5, 2)
    with torch.no_grad():
        out = model.read(torch.from_numpy(strips[:, 0].copy()), [1] * len(strips))
    first = Said.of_row(out, 0).log_probability(strips[:, 0])
    second = [Said.of_row(out, 2 * i + 1).log_probability(strip[1:])[0] for i, strip in enumerate(strips)]
    total = first + np.array(second)
    config = LegalConfig(max_patches=2, beam=len(strips), alphabet="aW ")
    (written,) = write_legal(model, renderer, [nothing], config)
    assert written.log_probability == pytest.approx(total.max(), abs=1e-4)
    assert np.array_equal(written.patches, strips[total.argmax()])
    _, once = np.unique(strips[:, 0], axis=0, return_index=True)
    assert written.legal_mass[0] == pytest.approx(np.exp(first[once]).sum(), rel=1e-4)
    same = (strips[:, 0] == written.patches[0]).all(1)
    assert written.legal_mass[1] == pytest.approx(np.exp(total[same] - first[same]).sum(), rel=1e-4)
    assert written.dropped == 0
    check_drawn(renderer, "", written)


def test_places_that_were_left_out_change_nothing():
    """A head that is nearly sure leaves most places out; what it would have found with all of them is the same."""
    renderer = make_renderer()
    grammar = RunningGrammar(renderer, "aceilT. ", stop=True)
    start = grammar.start(np.zeros((0, 64), np.uint8), None)
    patch = patches_of(renderer("il").pixels, 8)[0]
    for strength in (3.0, 40.0):  # the second: of what cannot be drawn, so that all that can is unlikely
        odds = torch.from_numpy(np.where(patch == 0, -1.0, 1.0) * strength)[None]
        said = Said(odds if strength < 10 else odds.flip(1), None)
        options = grammar.options(start, said)
        everything = options.best(10_000)
        log_N = np.array([option.log_probability for option in everything])
        assert len(everything) > 100 and (np.diff(log_N) <= 0).all()
        assert options.log_mass == pytest.approx(np.logaddexp.reduce(log_N), abs=2e-6)
        few = grammar.options(start, said).best(5)
        np.testing.assert_allclose([option.log_probability for option in few], log_N[:5])


# ------------------------------------------------------------------ what is written


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_what_is_written_is_the_drawing_of_its_text(temperature):
    renderer, model = make_renderer(patch_width=16), make_model(patch_length=2)
    texts = ["Once upon", "", "to j"]
    prompts = [prompt_of(renderer, text) if text else np.zeros((0, 128), np.uint8) for text in texts]
    config = LegalConfig(max_patches=3, beam=2, temperature=temperature, seed=5, alphabet=LETTERS)
    shown: list[tuple[int, np.ndarray]] = []
    grammar = legal_grammar(renderer, config)
    tell = lambda index, patch: shown.append((index, patch))  # noqa: E731
    written = write_legal(model, renderer, prompts, config, texts=texts, grammar=grammar, on_patch=tell)
    for index, one in enumerate(written):
        assert one.text and len(one.patches) == len(one.legal_mass)
        check_drawn(renderer, texts[index], one)
        assert one.log_probability == pytest.approx(log_probability(model, prompts[index], one.patches), rel=1e-4)
        assert np.array_equal([patch for where, patch in shown if where == index], one.patches)
        assert min(one.legal_mass) > 0 and one.non_text_mass == pytest.approx(1 - np.mean(one.legal_mass))
    # alone, and in other company, each becomes the same
    again = write_legal(model, renderer, prompts, config, texts=texts, grammar=grammar, batch=1)
    assert [one.text for one in again] == [one.text for one in written]
    unknown = write_legal(model, renderer, prompts, config, grammar=grammar)
    assert unknown[0].log_probability >= written[0].log_probability - 1e-3 or temperature


def test_a_strip_ends_where_its_text_would():
    """Heads that foretell a known strip: its text comes back, its end patch stands where the renderer puts it."""
    renderer = make_renderer(patch_width=16)
    grammar = RunningGrammar(renderer, LETTERS, stop=True)
    nothing = np.zeros((0, 128), np.uint8)
    for text in ("to be", "a", "ill till", "two  "):
        patches = patches_of(renderer(f"so {text}").pixels, 16)
        state: int | None = grammar.start(nothing, None)
        for patch in patches:
            assert state is not None
            odds = torch.from_numpy(np.where(patch == 0, -6.0, 6.0))[None]
            best = grammar.options(state, Said(odds, None)).best(1)[0]
            assert np.array_equal(best.patch, patch)
            state = best.state
        assert state is None
        story = grammar.story(nothing, None, patches[:-1], ended=True)
        assert story is not None
        assert np.array_equal(renderer(story.text).pixels, renderer(f"so {text}").pixels)
        assert grammar.story(nothing, None, patches[1:], ended=True) is None
        flipped = patches[:-1].copy()
        flipped[0, 0] ^= 255
        assert grammar.story(nothing, None, flipped, ended=True) is None


def test_texts_that_look_alike_are_noted():
    renderer = make_renderer(fonts=(), patch_width=16)
    grammar = RunningGrammar(renderer, "aeо o", stop=True)  # the third one is Cyrillic
    nothing = np.zeros((0, 128), np.uint8)
    for text, ambiguous in (("a e", False), ("ao", True)):
        story = grammar.story(nothing, None, patches_of(renderer(text).pixels, 16)[:-1], ended=True)
        assert story == (text, ambiguous)


def test_fonts_that_kern_and_melt_letters(shared):
    font = str(shared / "fonts/noto/NotoSans-Regular.ttf")
    renderer = Renderer(RenderConfig.named("pixar", fonts=[font], height=16, size=13.33))
    model = make_model(patch_height=16)
    config = LegalConfig(max_patches=3, alphabet="fiTVoj ")
    grammar = legal_grammar(renderer, config)
    nothing = np.zeros((0, 256), np.uint8)
    for text in ("office", "To Vj", "fi ffi"):
        patches = patches_of(renderer(text.replace("ce", "")).pixels, 16)
        story = grammar.story(nothing, None, patches[:-1], ended=True)
        assert story is not None and story.text == text.replace("ce", "")
    prompts = [prompt_of(renderer, text) for text in ("Toj", "off")]
    for text, one in zip(
        ("Toj", "off"),
        write_legal(model, renderer, prompts, config, texts=["Toj", "off"], grammar=grammar),
        strict=True,
    ):
        check_drawn(renderer, text, one)


def test_every_strip_of_pixeloid_can_be_written(shared):
    font = str(shared / "fonts/pixeloid/PixeloidSans-mLxMm.ttf")
    renderer = Renderer(RenderConfig.named("pixar", fonts=[font], size=9))
    text = 'She said: "I don\'t know why, Joshua." 30?'
    grammar = RunningGrammar(renderer, text, stop=True)
    nothing = np.zeros((0, 128), np.uint8)
    story = grammar.story(nothing, None, patches_of(renderer(text).pixels, 16)[:-1], ended=True)
    assert story is not None and np.array_equal(renderer(story.text).pixels, renderer(text).pixels)


# ------------------------------------------------------------------ pieces that are known


def piece_strips(renderer: Renderer, prompt: str, pieces: Sequence[str], most: int) -> dict[bytes, str]:
    """What can be written behind a prompt: patches, end patch included, of one to `most` pieces."""
    width = renderer.config.patch_width
    found = {}
    for count in range(1, most + 1):
        for chosen in itertools.product(pieces, repeat=count):
            strip = renderer(" ".join([prompt, *chosen]))
            assert strip.word_starts is not None
            first = strip.word_starts[len(renderer(prompt).word_starts) - 1]  # type: ignore[arg-type]
            found[patches_of(strip.pixels, width)[first:].tobytes()] = " ".join(chosen)
    return found


@pytest.mark.parametrize(("layout", "pieces"), [("words", ("to", "Toad", "i", "il")), ("sentences", ("a b.", "a b?"))])
def test_of_pieces_the_likeliest_is_found(layout, pieces):
    renderer, model = make_renderer(layout=layout), make_model()
    prompt = patches_of(renderer("Hi.").pixels, 8)[:-1]
    strips = piece_strips(renderer, "Hi.", pieces, 2)
    scored = {}
    for strip in strips:
        patches = np.frombuffer(strip, np.uint8).reshape(-1, 64)
        scored[strip] = log_probability(model, prompt, patches)
    limit = max(len(strip) // 64 for strip in strips)
    config = LegalConfig(max_patches=limit, beam=1000, pieces=pieces)
    (written,) = write_legal(model, renderer, [prompt], config)
    end = np.zeros((1, 64), np.uint8)
    best = max(scored, key=lambda strip: scored[strip])
    if scored[best] > log_probability(model, prompt, end) and written.ended:
        assert written.text == strips[best] and written.patches.tobytes() == best
    assert written.log_probability >= max(scored[best], log_probability(model, prompt, end)) - 1e-4
    # the first step: what each first patch and the end patch have
    firsts = {strip[:64] for strip in strips} | {end.tobytes()}
    mass = sum(math.exp(log_probability(model, prompt, np.frombuffer(one, np.uint8)[None])) for one in firsts)
    assert written.legal_mass[0] == pytest.approx(mass, rel=1e-4)
    drawn = write_legal(model, renderer, [prompt] * 3, LegalConfig(max_patches=limit, temperature=1.0, pieces=pieces))
    for one in drawn:
        assert not one.ended or one.text == "" or one.patches.tobytes() in piece_strips(renderer, "Hi.", pieces, 4)


def test_pieces_go_on_until_the_patches_are_used_up():
    renderer, model = make_renderer(layout="words"), make_model()
    config = LegalConfig(max_patches=6, pieces=("to", "Toad"), stop=False, temperature=1.0)
    for one in write_legal(model, renderer, [np.zeros((0, 64), np.uint8)] * 3, config):
        assert not one.ended and len(one.patches) == 6 and set(one.text.split()) <= {"to", "Toad"}
        strip = patches_of(renderer(one.text + " to").pixels, 8)
        assert np.array_equal(strip[:6], one.patches) or np.array_equal(
            patches_of(renderer(one.text).pixels, 8)[:6], one.patches
        )


# ------------------------------------------------------------------ what cannot be


def test_what_does_not_fit_is_named(shared):
    renderer, model = make_renderer(), make_model()
    prompt = prompt_of(renderer, "to")

    def refused(match: str, model: Pixar = model, renderer: Renderer = renderer, **changes: Any) -> None:
        base: dict[str, Any] = {"max_patches": 2}
        with pytest.raises(UserError, match=match):
            write_legal(model, renderer, [prompt], LegalConfig(**(base | changes)))

    refused("prompt 1 has 2 patches and 31 are to be written, the model's max_patches is 32", max_patches=31)
    refused("draws patches of 8 x 16 pixels and the model reads 8 x 8", renderer=make_renderer(patch_width=16))
    regression = make_model(head="regression", num_components=1)
    refused('head = "regression" gives no probabilities', model=regression)
    refused("render.color = grey", renderer=make_renderer(color="grey"))
    refused("by letters needs the layout continuous, not words", renderer=make_renderer(layout="words"))
    refused("alphabet: no font of the model has U\\+4E00", alphabet="a一")
    refused("alphabet is empty", alphabet="")
    refused("alphabet and pieces: give one", alphabet="a", pieces=("a",))
    refused("pieces: there are none", pieces=())
    refused("piece 'a ': a piece has text, and no white space around it", pieces=("a ",))
    refused("max_patches = 0", max_patches=0)
    refused("beam = 0", beam=0)
    refused("temperature = -1", temperature=-1)
    nothing, unable = np.zeros((0, 64), np.uint8), make_model(start_vector=False)
    with pytest.raises(UserError, match="prompt 1 is empty, and the model has no start vector"):
        write_legal(unable, renderer, [nothing], LegalConfig(max_patches=2))
    hebrew = [str(shared / "fonts/noto/NotoSansHebrew-Regular.ttf")]
    refused("letters that run from right to left", renderer=make_renderer(fonts=hebrew), alphabet="אב")


def test_states_of_an_automaton_are_made_once():
    renderer = make_renderer(patch_width=16)
    grammar = RunningGrammar(renderer, "aeil ", stop=True)
    automaton: LetterAutomaton = grammar._automaton
    said = Said(torch.zeros(1, 128, dtype=torch.float64), None)
    start = grammar.start(np.zeros((0, 128), np.uint8), None)
    masses = {Lattice(automaton, start, said, 16).log_mass for _ in range(2)}
    known = len(automaton._states)
    assert len(masses) == 1 and known < 200
    Lattice(automaton, start, said, 16)
    assert len(automaton._states) == known
