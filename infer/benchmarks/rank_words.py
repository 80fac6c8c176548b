"""Which of a passage's words does a model expect next? A measure that needs no reader.

Nothing is written here. Each content word of a passage is drawn behind it, and the model says how likely those pixels
are: the chance that the strip goes on with this word and a space. The likeliest is the answer. It can only be right
where the target occurs in the passage, so two shares are given, of all items and of those, and how many those are.

**What is compared.** Words have different widths, and what follows the space is open. Pixels of a Bernoulli head are
independent given what stands before the patch, and so are those of one component of a mixture; so the chance of the
columns up to the end of the space alone is exact: those columns are summed over, the rest of the last patch is left
out. The chances of two words of different widths are then chances of two events of one kind, "the next word is this
one", as in a language model of tokens, and are compared as they are. The space belongs to it: without it "sign" could
never be less likely than "signs". Some would rather compare the mean over the columns, which favours long words; that
share is given beside it.

Baselines that see no more than the candidates: any of them, the shortest, the most frequent in the passage, the last
name, and with a word list the one that is most common in it.

The prompt is read once; its keys and values are copied for each candidate (`KVCache.select`), which brings its own
patches only. Source: ours; the published evaluation reads pictures only.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from infer.benchmarks.answers import WIDTH, aligned
from infer.benchmarks.content_words import content_words, last_name
from infer.benchmarks.drawn_words import DrawnWord, drawn_words
from infer.benchmarks.intervals import Share, share_of
from infer.benchmarks.next_word import WordItem, fitting_prompts
from pixelcore.errors import UserError
from pixelcore.models.pixar import Pixar, PixarOutput
from render import Renderer


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """right: of all items; right_where_present: of those whose target is a content word of the passage; present: how
    many those are. by_mean: right by the mean over the columns, of all items. candidates: of an item, on average.
    chance: of all items, the share that a candidate drawn at random is expected to get. num_cut: prompts that lost
    words on the left. baselines: of all items."""

    right: Share
    right_where_present: Share
    present: Share
    by_mean: Share
    candidates: float
    chance: float
    num_cut: int
    baselines: dict[str, Share]


def rank(
    model: Pixar,
    renderer: Renderer,
    items: Sequence[WordItem],
    frequencies: Mapping[str, float] | None = None,
    *,
    progress: bool = False,
) -> Ranking:
    """How often the target is the likeliest of the passage's content words. frequencies: of lower-case words, for a
    baseline. Raises UserError for a model without likelihoods and for passages that cannot be drawn."""
    check_head(model)
    chosen: list[str] = []
    by_mean: list[str] = []
    places: list[list[str]] = []
    num_cut = 0
    for item in tqdm(items, desc="rank", unit="item", disable=not progress):
        words = list(dict.fromkeys(content_words(item.context)))
        places.append(words)
        best, best_mean = "", ""
        if words:
            drawn = drawn_words(renderer, model.config, item.context, words)
            # a prompt that is cut on the left ends as before, so the words stand behind it as they are drawn
            prompt = fitting_prompts(renderer, model.config, [item.context], max(len(one.patches) for one in drawn))
            num_cut += prompt.num_cut
            scores = log_probabilities(model, prompt.patches[0], drawn)
            best = words[int(np.argmax(scores))]
            best_mean = words[int(np.argmax(scores / [one.columns for one in drawn]))]
        chosen.append(best)
        by_mean.append(best_mean)
    present = [item.word in words for item, words in zip(items, places, strict=True)]
    right = [word == item.word for word, item in zip(chosen, items, strict=True)]
    return Ranking(
        right=share_of(right),
        right_where_present=share_of(hit for hit, there in zip(right, present, strict=True) if there),
        present=share_of(present),
        by_mean=share_of(word == item.word for word, item in zip(by_mean, items, strict=True)),
        candidates=sum(map(len, places)) / len(items),
        chance=sum(there / len(words) for there, words in zip(present, places, strict=True) if words) / len(items),
        num_cut=num_cut,
        baselines=_baselines(items, places, frequencies),
    )


def check_head(model: Pixar) -> None:
    """Refuse a model that says no chances."""
    if model.config.head == "regression":
        raise UserError("--rank needs likelihoods, and a regression has none: give a bernoulli or mixture model")


def _baselines(
    items: Sequence[WordItem], places: Sequence[Sequence[str]], frequencies: Mapping[str, float] | None
) -> dict[str, Share]:
    def of(choose) -> Share:
        return share_of(choose(item, words) == item.word for item, words in zip(items, places, strict=True))

    def most_frequent(item: WordItem, words: Sequence[str]) -> str:
        counted = Counter(content_words(item.context))
        return max(words, key=counted.__getitem__, default="")

    found = {
        "shortest candidate": of(lambda item, words: min(words, key=len, default="")),
        "longest candidate": of(lambda item, words: max(words, key=len, default="")),
        "most frequent in the passage": of(most_frequent),
        "last name in the passage": of(lambda item, words: last_name(item.context)),
    }
    if frequencies is not None:
        found["most frequent in the word list"] = of(
            lambda item, words: max(words, key=lambda word: frequencies.get(word.lower(), 0), default="")
        )
    return found


@torch.no_grad()
def log_probabilities(model: Pixar, prompt: NDArray[np.uint8], drawn: Sequence[DrawnWord]) -> NDArray[np.float64]:
    """Natural, of each word behind the prompt: of the columns that it says, all pixels of them. float64 [words].

    prompt: uint8 [P, A], read once. Raises UserError where a word does not fit the context.
    """
    device = model.norm.weight.device
    longest = max(len(one.patches) for one in drawn)
    cache = model.new_cache(1, len(prompt) + longest)
    first = model.read(torch.from_numpy(prompt).to(device), [len(prompt)], cache, last_only=True)
    scores = torch.zeros(len(drawn), dtype=torch.float64)
    begin = torch.from_numpy(np.stack([one.patches[0] for one in drawn]))
    scores += _log_p(first, [0] * len(drawn), begin, _known(model, [one.columns for one in drawn]))
    longer = [index for index, one in enumerate(drawn) if len(one.patches) > 1]
    if longer:
        cache.select([0] * len(longer))
        lengths = [len(drawn[index].patches) - 1 for index in longer]
        read = np.concatenate([drawn[index].patches[:-1] for index in longer])
        out = model.read(torch.from_numpy(read).to(device), lengths, cache)
        targets = torch.from_numpy(np.concatenate([drawn[index].patches[1:] for index in longer]))
        width = model.config.patch_width
        owners = [index for index in longer for _ in drawn[index].patches[1:]]
        known = [drawn[index].columns - width * n for index in longer for n in range(1, len(drawn[index].patches))]
        scores.index_add_(0, torch.tensor(owners), _log_p(out, list(range(len(owners))), targets, _known(model, known)))
    return scores.numpy()


def _known(model: Pixar, columns: Sequence[int]) -> Tensor:
    """Of each patch, which values count when so many of its columns, or all, do: bool [M, A]."""
    config = model.config
    place = torch.arange(config.patch_values) // config.num_channels % config.patch_width
    return place < torch.tensor(columns)[:, None]


def _log_p(out: PixarOutput, rows: Sequence[int], targets_MA: Tensor, known_MA: Tensor) -> Tensor:
    """Of the known values of each target under row rows[m] of what the model said: fp64 [M]."""
    components_MZA = out.components.to("cpu", torch.float64)[list(rows)]
    signed_M1A = targets_MA[:, None].double() / 127.5 - 1
    each_MZ = (F.logsigmoid(components_MZA * signed_M1A) * known_MA[:, None]).sum(2)
    if out.scores is not None:
        each_MZ = each_MZ + out.scores.to("cpu", torch.float64)[list(rows)].log_softmax(1)
    found = each_MZ.logsumexp(1)
    if not bool(found.isfinite().all()):
        raise UserError("the model gave NaN or infinite values: its weights are damaged or the dtype is too narrow")
    return found


def as_lines(result: Ranking) -> list[str]:
    """The result for people, without its heading."""
    return [
        *aligned(
            {
                "likeliest content word is right": result.right,
                "  where the word is in the passage": result.right_where_present,
                "  by the mean over the columns": result.by_mean,
                "word is among the candidates": result.present,
            }
        ),
        f"{'candidates':<{WIDTH}}{result.candidates:.1f} an item on average",
        "baselines on the same items",
        f"{'  one candidate at random':<{WIDTH}}{result.chance:.4f}",
        *aligned(result.baselines, indent="  "),
    ]
