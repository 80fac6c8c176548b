"""Labels without a model: what anything that claims to have learned must beat.

Most words of a test set stood in the training set, mostly with one label, and those that did not mostly end like words
that did. So the most frequent label of a word, and of the longest ending that is known where the word is not, tags
English at about 88 %.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from pixelcore.tasks.examples import WordsExample

_LONGEST_ENDING = 6
_RARE = 10  # endings are learned from words seen at most so often: unknown words are like rare ones

Tagger = Callable[[str], str]


def taggers(train: Sequence[WordsExample]) -> dict[str, Tagger]:
    """A function from word to label for each baseline."""
    by_word: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for example in train:
        for word, label in zip(example.words, example.labels or ()):
            by_word[word][label] += 1
    totals = sum(by_word.values(), Counter())
    majority = _most_frequent(totals)
    by_ending: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for word, found in by_word.items():
        if found.total() <= _RARE:
            for ending in _endings(word):
                by_ending[ending] += found
    of_word = {word: _most_frequent(found) for word, found in by_word.items()}
    of_ending = {ending: _most_frequent(found) for ending, found in by_ending.items()}

    def by_word_or_ending(word: str) -> str:
        if word in of_word:
            return of_word[word]
        return next((of_ending[ending] for ending in _endings(word) if ending in of_ending), majority)

    return {"majority": lambda word: majority, "most frequent of the word": by_word_or_ending}


def _endings(word: str) -> list[str]:
    """The last letters, longest first; a capital and a figure in the word are part of each."""
    shape = f"{word[:1].isupper():d}{any(map(str.isdecimal, word)):d}"
    return [f"{shape}{word[-length:]}" for length in range(min(_LONGEST_ENDING, len(word)), 0, -1)] + [shape]


def _most_frequent(found: Counter[str]) -> str:
    # of equals the first by name, so that the order of the file does not matter
    return min(found, key=lambda label: (-found[label], label))
