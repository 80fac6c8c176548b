"""How right the text of an answer is: exact match and F1, as SQuAD defines them; and answers without a model.

Answers are compared without case, punctuation (of ASCII, as the official programs do it), articles and the number of
spaces. F1 is that of the words two answers have in common, each as often as it occurs. Of several right answers the one
that fits best counts. KorQuAD's evaluation, which JaQuAD follows, counts characters in place of words, keeps articles
and drops a few quotation marks and brackets that ASCII does not have. An answer of nothing is right where there is
nothing to find, and else wrong, as in SQuAD 2.

Sources: Rajpurkar et al., arXiv:1606.05250 and arXiv:1806.03822; Lim et al., KorQuAD 1.0, arXiv:1909.07005.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

from pixelcore.tasks.answer_spans import words_of
from pixelcore.tasks.examples import QuestionExample

UNITS = ("words", "characters")

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
_KORQUAD_MARKS = str.maketrans(dict.fromkeys("'\"《》<>〈〉()‘’", " "))
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+|(?<=[。！？।؟])\s*|\n+")


def normal(text: str, units: str) -> str:
    """An answer in the form in which it is compared."""
    text = text.lower()
    if units == "characters":
        return " ".join(text.translate(_KORQUAD_MARKS).translate(_ASCII_PUNCTUATION).split())
    return " ".join(_ARTICLES.sub(" ", text.translate(_ASCII_PUNCTUATION)).split())


def exact_match_and_f1(predicted: str, gold: Sequence[str], units: str) -> tuple[float, float]:
    """Of the best of the right answers; none are one empty answer. units: of F1, "words" or "characters"."""
    right = [one for one in (normal(text, units) for text in gold) if one] or [""]
    said = normal(predicted, units)
    return float(said in right), max(_f1(_parts(said, units), _parts(one, units)) for one in right)


def _parts(text: str, units: str) -> list[str]:
    return text.split() if units == "words" else [character for character in text if character != " "]


def _f1(said: list[str], right: list[str]) -> float:
    if not said or not right:
        return float(said == right)
    return 2 * (Counter(said) & Counter(right)).total() / (len(said) + len(right))


# ------------------------------------------------------------------ without a model


def most_frequent(train: Sequence[QuestionExample]) -> str:
    """The most frequent answer of the training data; of equals the first by name."""
    found = Counter(example.answers[0][0] for example in train if example.answers)
    return min(found, key=lambda text: (-found[text], text), default="")


def last_word_of_the_likest_sentence(example: QuestionExample) -> str:
    """The last word, not one of the question's, of the sentence that has most of the question's words; of equals the
    last sentence. bAbI's first task takes no more than this."""
    asked = {example.question[begin:end].casefold() for begin, end in words_of(example.question)}
    best, answer = -1, ""
    for sentence in _SENTENCE_ENDS.split(example.context):
        words = [sentence[begin:end] for begin, end in words_of(sentence)]
        others = [word for word in words if word.casefold() not in asked]
        shared = len({word.casefold() for word in words} & asked)
        if shared >= best and others:
            best, answer = shared, others[-1]
    return answer
