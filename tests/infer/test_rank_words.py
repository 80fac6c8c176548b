"""The likeliest content word: its likelihood by definition, and what is counted."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from infer.benchmarks import rank_words
from infer.benchmarks.content_words import content_words, last_content_word, last_name, most_frequent
from infer.benchmarks.drawn_words import drawn_words
from infer.benchmarks.next_word import WordItem
from infer.benchmarks.rank_words import as_lines, log_probabilities, rank
from infer.pixar import prompt_patches
from pixelcore.errors import UserError
from render import Renderer
from tests.infer.tiny_pixar import CONFIG, RENDER, bernoulli, pixar

RENDERER = Renderer(RENDER)
CONTEXT = "Anna asked the baker, and the baker told Anna"
WORDS = ["baker", "extraordinary", "it"]


def by_definition(model, prompt, drawn):
    """The strip is read again for each word, and each pixel that the word says is looked at by itself."""
    total = 0.0
    whole = np.concatenate([prompt, drawn.patches])
    with torch.no_grad():
        out = model.read(torch.from_numpy(whole[:-1]), [len(whole) - 1])
    before = len(prompt) - 1 + model.config.start_vector  # the row that foretells the word's first patch
    for n, patch in enumerate(drawn.patches):
        weights = torch.zeros(1) if out.scores is None else out.scores[before + n].log_softmax(0)
        known = []
        for value in range(128):
            if value % 16 < drawn.columns - 16 * n:
                sign = 1 if patch[value] == 255 else -1
                known.append(F.logsigmoid(sign * out.components[before + n, :, value]))
        total += float((weights + torch.stack(known).sum(0)).double().logsumexp(0))
    return total


@pytest.mark.parametrize("model", [pixar(), bernoulli()], ids=["mixture", "bernoulli"])
def test_a_word_is_as_likely_as_reading_the_whole_strip_for_it_says(model):
    prompt = prompt_patches(RENDERER, CONTEXT, CONFIG)
    drawn = drawn_words(RENDERER, CONFIG, CONTEXT, WORDS)
    assert [len(one.patches) for one in drawn] == [2, 4, 1]
    found = log_probabilities(model, prompt, drawn)
    np.testing.assert_allclose(found, [by_definition(model, prompt, one) for one in drawn], rtol=1e-5)


def test_pixels_behind_the_space_have_no_say():
    model, prompt = pixar(), prompt_patches(RENDERER, CONTEXT, CONFIG)
    drawn = drawn_words(RENDERER, CONFIG, CONTEXT, ["baker"])
    expected = log_probabilities(model, prompt, drawn)
    drawn[0].patches[-1].reshape(8, 16)[:, drawn[0].columns % 16 :] = 0
    assert log_probabilities(model, prompt, drawn) == expected


def test_a_model_that_knows_is_right_wherever_the_word_is_in_the_passage(monkeypatch):
    items = [WordItem("Tom saw Anna and called", "Anna"), WordItem("The baker sold his bread and his", "shop")]
    wanted = [drawn_words(RENDERER, CONFIG, item.context, [item.word])[0].patches for item in items]

    def knowing(model, prompt, drawn):
        return np.array([float(any(np.array_equal(one.patches, right) for right in wanted)) for one in drawn])

    monkeypatch.setattr(rank_words, "log_probabilities", knowing)
    found = rank(pixar(), RENDERER, items, {"sold": 3, "bread": 2})
    assert (found.right.share, found.right_where_present.share, found.present.share) == (0.5, 1.0, 0.5)
    assert found.candidates == 3.5  # Tom saw Anna called; baker sold bread
    assert found.chance == pytest.approx(1 / 4 / 2)
    shares = {name: share.hits for name, share in found.baselines.items()}
    assert shares == {
        "shortest candidate": 0,
        "longest candidate": 0,
        "most frequent in the passage": 0,
        "last name in the passage": 1,
        "most frequent in the word list": 0,
    }
    assert "right" in "\n".join(as_lines(found))


def test_passages_longer_than_the_context_and_without_content_are_ranked_too():
    long = "the baker and Anna walked home " * 40
    found = rank(pixar(), RENDERER, [WordItem(long.strip(), "Anna"), WordItem("and it was", "so")])
    assert found.num_cut == 1
    assert found.present.hits == 1


def test_a_regression_has_no_likelihood():
    with pytest.raises(UserError, match="--rank needs likelihoods"):
        rank(pixar(head="regression", num_components=1), RENDERER, [WordItem("a b", "c")])


def test_content_words_are_letters_that_grammar_does_not_need():
    text = "He said: the baker's dog, Tom, can't see 7 dogs; so Tom ran"
    assert content_words(text) == ["said", "baker", "dog", "Tom", "see", "dogs", "Tom", "ran"]
    assert (most_frequent(text), last_name(text), last_content_word(text)) == ("Tom", "Tom", "ran")
    assert (most_frequent("it is"), last_name("It is. He"), last_content_word("")) == ("", "", "")
