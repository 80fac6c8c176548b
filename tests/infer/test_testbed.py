"""The test bed: what it calls exact is exact, and a model that is the truth measures as it."""

import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from infer.benchmarks.testbed import bits_of_texts, known_bits, measure
from infer.benchmarks.testbed_drawing import Drawing, Tree, patches_of
from infer.benchmarks.testbed_floors import FloorMaker, PatchCosts, entropy
from infer.benchmarks.testbed_mixture import mixture_bits
from infer.benchmarks.testbed_worlds import ANSWER, FIXED, OPEN, WORLDS, World
from infer.benchmarks.testbed_writing import Attempt, Decoding, Share, entropy_of_counts, recognised
from infer.commands_testbed import RENDER
from pixelcore.models.pixar import PixarOutput
from render import RenderConfig, Renderer
from tests.infer.tiny_pixar import bernoulli, pixar, stored
from tests.infer.tiny_pixels import write_run


def renderer(**changes: object) -> Renderer:
    return Renderer(RenderConfig.from_dict({**RENDER, **changes}))


def world_of_two(chance: float, kinds: tuple[str, ...] = (OPEN,)) -> World:
    """One of two sentences, then, for every further kind, the same again."""
    return World(
        name="two",
        kinds=kinds,
        next=lambda said: {said[0]: 1.0} if said else {"a.": chance, "b.": 1 - chance},
        summary=lambda said: said[0] if said else "",
        sentences=("a.", "b."),
        probed=(0,),
        features={"sentence": lambda sentence: sentence},
    )


# ---- worlds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORLDS)
def test_chances_sum_to_one_and_open_sentences_alone_are_open(name: str):
    world = WORLDS[name]
    for sentences in world.draw_many(20, seed=1):
        for place, kind in enumerate(world.kinds):
            chances = world.next(sentences[:place])
            assert math.isclose(sum(chances.values()), 1)
            assert set(chances) <= set(world.sentences)
            assert min(chances.values()) > 0
            assert len(chances) == 1 or kind == OPEN
            assert sentences[place] in chances


@pytest.mark.parametrize("name", WORLDS)
def test_pasts_of_one_summary_have_the_same_continuations(name: str):
    world, known = WORLDS[name], {}
    for sentences in world.draw_many(25, seed=2):
        for place in range(len(world.kinds)):
            past = sentences[:place]
            assert known.setdefault((place, world.summary(past)), world.next(past)) == world.next(past)


def test_seeds_and_worlds_have_texts_of_their_own():
    drawn = {tuple(map(tuple, world.draw_many(3, seed))) for world in WORLDS.values() for seed in range(3)}
    assert len(drawn) == 3 * len(WORLDS)
    assert WORLDS["names"].draw_many(3, 0) == WORLDS["names"].draw_many(5, 0)[:3]


# ---- drawing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [0, 2])
@pytest.mark.parametrize("name", WORLDS)
def test_sentences_one_after_another_are_the_strip_of_their_text(name: str, pad: int):
    drawing = Drawing(renderer(pad=pad), WORLDS[name])
    for sentences in WORLDS[name].draw_many(8, seed=3):
        whole = patches_of(drawing.renderer(" ".join(sentences)))
        assert np.array_equal(drawing.text(sentences), whole)
        assert not whole[-1].any()
        assert np.array_equal(drawing.text(sentences[:2]), whole[: len(drawing.text(sentences[:2]))])


def test_sentences_of_pixeloid_are_the_strip_of_their_text(shared):
    font = str(shared / "fonts/pixeloid/PixeloidSans-mLxMm.ttf")
    for world in WORLDS.values():
        drawing = Drawing(renderer(fonts=[font], size=9), world)
        for sentences in world.draw_many(4, seed=3):
            drawing.check(sentences)


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"layout": "words"}, "use layout sentences"), ({"color": "grey"}, "color binary")],
)
def test_strips_whose_next_patch_is_not_known_are_refused(changes: dict[str, str], told: str):
    with pytest.raises(Exception, match=told):
        Drawing(renderer(**changes), WORLDS["names"])


def test_sentences_that_look_alike_are_refused():
    black, white = np.zeros((1, 8), np.uint8), np.full((1, 8), 255, np.uint8)
    with pytest.raises(Exception, match="'a' and 'b' look alike"):
        Tree({"a": black, "b": black})
    with pytest.raises(Exception, match="begins with all patches of 'a'"):
        Tree({"a": black, "b": np.concatenate([black, white])})


def test_the_chances_of_what_follows_a_patch_sum_to_one():
    world = WORLDS["stories"]
    drawing = Drawing(renderer(), world)
    for sentences in world.draw_many(3, seed=4):
        for place in (0, 1, 2, 3, 9, 18, 19):
            tree = drawing.tree(place)
            mass_E = tree.masses(world.next(sentences[:place]))
            mass_N = tree.nodes(mass_E)
            reached = np.flatnonzero(mass_N)
            shares = mass_E / np.where(mass_N, mass_N, 1)[tree.parent_E]
            assert np.allclose(np.bincount(tree.parent_E, shares)[reached], 1)
            assert math.isclose(mass_N[0], 1)


# ---- floors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chance", [0.5, 0.25])
def test_floors_of_two_sentences_are_those_counted_by_hand(chance: float):
    drawing = Drawing(renderer(), world_of_two(chance))
    one, two = drawing.text(["a."]), drawing.text(["b."])
    assert len(one) == len(two) == 2  # the sentence, and the end patch
    differ = int((one != two).sum())
    assert differ > 1
    bits = float(entropy(np.array([chance]))[0])
    floors = FloorMaker(drawing, (1, 2)).floors()
    assert (floors.texts, floors.errors, floors.patches, floors.open) == (0, (), 2, 0.5)
    assert math.isclose(floors.truth, bits / 2)
    assert math.isclose(floors.bernoulli, differ * bits / 2)
    assert math.isclose(floors.mixtures[1], floors.bernoulli, rel_tol=1e-5)
    assert math.isclose(floors.mixtures[2], floors.truth)
    assert floors.bounds == (1,)


def test_what_is_determined_costs_nothing():
    drawing = Drawing(renderer(), world_of_two(0.5, (OPEN, FIXED, ANSWER)))
    floors = FloorMaker(drawing).floors()
    assert floors.patches == 4  # three sentences of a patch each, and the end patch
    assert math.isclose(floors.truth, 1 / 4)
    assert known_bits(drawing, ["a.", "a.", "a."])[:, 0].tolist() == [1, 0, 0, 0]


def test_floors_over_a_sample_are_those_over_all_texts():
    drawing = Drawing(renderer(), WORLDS["scripts"])
    maker = FloorMaker(drawing)
    exact, sampled = maker.floors(), maker.floors(texts=200, most_pasts=3)
    assert (exact.texts, sampled.texts) == (0, 200)
    for name, error in zip(("truth", "bernoulli"), sampled.errors, strict=True):
        assert abs(getattr(sampled, name) - getattr(exact, name)) < 4 * error + 1e-9


def test_costs_of_a_past_do_not_depend_on_what_was_asked_before():
    world = WORLDS["stories"]
    drawing = Drawing(renderer(pad=2), world)
    maker = FloorMaker(drawing)
    for sentences in world.draw_many(2, seed=5):
        for place in range(len(world.kinds)):
            past = sentences[:place]
            assert maker.bits(past) == PatchCosts(()).of(drawing.tree(place), world.next(past))


def test_truth_lies_below_mixtures_and_these_below_independent_pixels():
    floors = FloorMaker(Drawing(renderer(), WORLDS["names"]), (2, 4, 8, 16)).floors()
    found = [floors.bernoulli, *floors.mixtures.values()]
    assert found == sorted(found, reverse=True)
    assert math.isclose(floors.mixtures[16], floors.truth)  # 16 names
    assert math.isclose(floors.truth * floors.patches, 4 * 4)  # four times one of them
    assert floors.bounds == (2, 4, 8)


def test_a_mixture_groups_patches_that_are_alike():
    rng = np.random.default_rng(0)
    one, two = rng.random((2, 64)) < 0.5
    near_one, near_two = one.copy(), two.copy()
    near_one[:3] ^= True
    near_two[:5] ^= True
    ink, shares = np.stack([one, two, near_one, near_two]), np.full(4, 0.25)
    # which of two groups is one bit, and half the time 3 pixels of it are open, else 5
    assert math.isclose(mixture_bits(ink, shares, 2), 1 + 3 / 2 + 5 / 2, rel_tol=1e-4)
    assert mixture_bits(ink, shares, 4) == mixture_bits(ink, shares, 9) == 2
    assert math.isclose(mixture_bits(ink, shares, 1), entropy(shares @ ink).sum(), rel_tol=1e-5)


# ---- models ----------------------------------------------------------------------------------------------------------


class Knowing:
    """A model that is the truth, as far as its head lets it: it looks up what may follow what it reads."""

    def __init__(self, drawing: Drawing, texts: list[list[str]], mixed: bool):
        self.drawing, self.mixed = drawing, mixed
        self.texts = {drawing.text(sentences).tobytes(): sentences for sentences in texts}
        self.norm = SimpleNamespace(weight=torch.zeros(1))

    def __call__(self, patches) -> PixarOutput:
        chances, weights = [], []
        for strip in np.split(patches.pixels.numpy(), np.cumsum(patches.counts)[:-1]):
            sentences = self.texts[strip.tobytes()]
            for place, sentence in enumerate(sentences):
                tree = self.drawing.tree(place)
                mass_E = tree.masses(self.drawing.world.next(sentences[:place]))
                for edge in tree.paths[tree.sentences[sentence]]:
                    beside = np.flatnonzero((tree.parent_E == tree.parent_E[edge]) & (mass_E > 0))
                    share = mass_E[beside] / mass_E[beside].sum()
                    paper = 1 - tree.ink_EA[beside]
                    chances.append(np.zeros((16, paper.shape[1])))
                    weights.append(np.zeros(16))
                    chances[-1][: len(share)] = paper if self.mixed else share @ paper
                    weights[-1][: len(share)] = share if self.mixed else np.eye(len(share))[0]
        components = torch.logit(torch.tensor(np.array(chances)), 1e-12)
        return PixarOutput(components, torch.tensor(np.array(weights)).log(), (8, 16))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", ["names", "scripts"])
def test_a_model_that_is_the_truth_measures_at_the_floor_of_its_head(name: str, mixed: bool):
    world = WORLDS[name]
    drawing = Drawing(renderer(), world)
    texts = world.draw_many(12, seed=6)
    found = bits_of_texts(Knowing(drawing, texts, mixed), drawing, texts)  # type: ignore[arg-type]
    floors = FloorMaker(drawing).floors()
    for bits in found.values():
        assert math.isclose(bits.model, bits.truth if mixed else bits.bernoulli, rel_tol=1e-4, abs_tol=1e-4)
    assert found["determined"].truth == found["answer sentences"].bernoulli == 0
    assert math.isclose(found["all"].patches / len(texts), floors.patches, rel_tol=0.05)
    assert math.isclose(found["all"].truth, floors.truth, rel_tol=0.05)
    assert math.isclose(found["all"].bernoulli, floors.bernoulli, rel_tol=0.2)


def test_likelihoods_of_stories_average_to_the_truth():
    """The generator of stories and the world that knows their chances agree."""
    world = WORLDS["stories"]
    drawing = Drawing(renderer(), world)
    texts = world.draw_many(15, seed=7)
    bits = [known_bits(drawing, sentences)[:, 0].sum() for sentences in texts]
    statements, questions = 10 * math.log2(len("DJMS") * 5), [math.log2(6), math.log2(5)]
    assert statements + 10 * questions[1] < np.mean(bits) < statements + 10 * questions[0] + 5 * math.log2(4)


def test_entropies_of_counts_make_up_for_few_counts():
    assert entropy_of_counts({}) is None
    assert entropy_of_counts({"a": 5}) == 0
    assert math.isclose(entropy_of_counts({"a": 2, "b": 2}) or 0, 1 + 1 / (8 * math.log(2)))
    source = random.Random(0)
    found = []
    for _ in range(200):
        drawn = [source.randrange(4) for _ in range(32)]
        found.append(entropy_of_counts({str(i): drawn.count(i) for i in set(drawn)}) or 0)
    assert abs(np.mean(found) - 2) < 0.01


def test_shares_have_wilsons_interval():
    share = Share.of([True] * 8 + [False] * 2)
    assert (share.share, share.successes, share.count) == (0.8, 8, 10)
    assert (round(share.low, 3), round(share.high, 3)) == (0.490, 0.943)


def test_sentences_are_recognised_by_their_pixels():
    world = WORLDS["names"]
    drawing = Drawing(renderer(), world)
    said = world.draw_many(1, 0)[0]
    last = len(said) - 1
    for place in (1, last):
        past = Attempt(said[:place], world.next(said[:place]))
        patches = drawing.text(said)[len(drawing.text(said[:place])) : len(drawing.text(said[: place + 1]))]
        behind = np.concatenate([patches, patches])
        assert recognised(drawing, past, behind) == Attempt(past.before, past.allowed, said[place], said[place], True)
        patches[0, 0] ^= 255
        near = recognised(drawing, past, patches)
        assert (near.sentence, near.nearest, near.is_near) == (None, said[place], True)
        noise = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), patches.shape)
        assert not recognised(drawing, past, noise).is_near
        assert not recognised(drawing, past, patches[:0]).is_near
    # the sentence counts without its end patch
    end = drawing.text(said)[-2:-1]
    assert recognised(drawing, past, end).sentence == said[last] or len(drawing.sentence(said[last], last=True)) > 2


@pytest.mark.parametrize("decode", ["mixture", "legal"])
def test_a_model_is_measured_with_every_decoding(decode: str):
    model, world = pixar(max_patches=80), WORLDS["names"]
    known = {" ".join(sentences) for sentences in world.draw_many(5, 0)}
    drawing = Drawing(renderer(), world)
    found = measure(model, drawing, Decoding(decode=decode), count=2, known=known)
    again = measure(model, drawing, Decoding(decode=decode), count=2, known=known)
    assert found == again
    assert found.bits["all"].model > found.bits["all"].truth
    assert found.answers.legible.share == (1.0 if decode == "legal" else 0.0)
    assert found.guesses["always the same name"].count == 2
    assert math.isclose(found.variety["name"].one_past_truth, 4)


def test_held_out_texts_are_not_those_that_were_trained_on():
    model, drawing = bernoulli(max_patches=80), Drawing(renderer(), WORLDS["names"])
    first = random.Random("names held out 0")
    known = {" ".join(WORLDS["names"].draw(first)) for _ in range(2)}
    found = measure(model, drawing, Decoding(), count=2, known=known)
    assert found.known == 2


# ---- the command line ------------------------------------------------------------------------------------------------


def test_the_command_writes_a_text_with_its_floors(command, tmp_path):
    file = tmp_path / "names.txt"
    status, out, _ = command("evaluate", "testbed", "--write", file, "--world", "names", "--count", 30)
    assert status == 0
    documents = file.read_text().split("\n\n")
    assert documents[-1] == ""
    assert documents[:-1] == [" ".join(sentences) for sentences in WORLDS["names"].draw_many(30, 0)]
    assert "0.2678 bits a patch" in out
    assert "mixture of 8          at most" in out
    status, out, _ = command("evaluate", "testbed", "--write", file, "--world", "names", "--count", 3, "--json")
    assert round(json.loads(out)["floors"]["truth"], 4) == 0.2678


def test_the_command_measures_a_model(command, tmp_path):
    model = bernoulli(max_patches=80)
    write_run(tmp_path / "model", stored(model, RenderConfig.from_dict(RENDER | {"max_patches": 80})))
    data = tmp_path / "names.txt"
    command("evaluate", "testbed", "--write", data, "--world", "names", "--count", 5, "--no-floors")
    flags = ("--model", tmp_path / "model", "--world", "names", "--count", 2, "--data", data)
    status, out, _ = command("evaluate", "testbed", *flags, "--json")
    found = json.loads(out)
    assert (status, found["world"], found["texts"], found["decode"]) == (0, "names", 2, "threshold")
    assert round(found["floors"]["bernoulli"], 4) == 2.9801
    status, out, _ = command("evaluate", "testbed", *flags, "--no-floors")
    assert status == 0
    assert "answers right" in out
    assert "floors" not in out


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--world", "storys"), "choose stories, names"),
        (("--write", "x.txt", "--decode", "sample"), "leave one of them out"),
        (("--write", "x.txt", "--count", "0"), "must be at least 1"),
        (("--write", "x.txt", "--set", "render.layout=words"), "use layout sentences"),
        (
            (
                "--write",
                "absent/x.txt",
            ),
            "the folder absent does not exist",
        ),
    ],
)
def test_mistakes_are_answered_in_one_line(refused, flags: tuple[str, ...], told: str):
    assert told in refused("evaluate", "testbed", *flags)


def test_models_that_cannot_be_measured_are_refused():
    drawing = Drawing(renderer(), WORLDS["names"])
    for model, told in [
        (bernoulli(start_vector=False), "no start vector"),
        (pixar(head="regression", num_components=1), "no likelihoods"),
        (bernoulli(patch_length=1), "leave --set"),
    ]:
        with pytest.raises(Exception, match=told):
            measure(model, drawing, Decoding(), count=1)
    with pytest.raises(Exception, match="mixture head"):
        measure(bernoulli(), drawing, Decoding(decode="mixture"), count=1)
    with pytest.raises(Exception, match="longer than"):
        measure(bernoulli(), drawing, Decoding(), count=1)
