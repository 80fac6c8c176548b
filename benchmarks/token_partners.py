"""The decoder of tokens that a model of strips is measured against, so that only what goes in and comes out differs.

Same trunk: layers, width, heads, feed-forward and rotary base of the `PixarConfig`, all of attention's heads with keys
and values of their own. Where the one has a map from patches and another to them, the other has an embedding, tied to
its head. Parameters therefore differ by what a vocabulary costs, and are told.

Same characters a step of the sequence: a vocabulary of byte pairs is made as large as it must be for its tokens to hold
as many characters as the patches do, ends of rows counted on both sides. Bytes are the other partner, which needs no
vocabulary either.

Same arithmetic: the training steps of both add up to the same floating point operations (pixelcore.accounting and
pixelcore.accounting_pixar: matrix products forward and backward, attention included; reading, drawing and the optimizer
are not in it), so whoever reads more characters a step of the sequence sees more text for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pixelcore.accounting import flops_per_token
from pixelcore.accounting_pixar import flops_per_patch
from pixelcore.config import DecoderConfig, PixarConfig
from pixelcore.tokenizer import NUM_SPECIAL_AND_BYTES, Tokenizer, train_tokenizer

LARGEST_VOCABULARY = 1 << 16
_ROWS = 4000  # of the text, evenly taken, on which vocabularies are tried
_MEGABYTES = 4  # of the text, evenly taken, from which one is learned


def partner(config: PixarConfig, vocab_size: int, context_length: int) -> DecoderConfig:
    """The decoder with the trunk of this model."""
    return DecoderConfig(
        vocab_size=vocab_size,
        context_length=context_length,
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        rope_base=config.rope_base,
        rms_norm_eps=config.rms_norm_eps,
    )


def row_flops(config: PixarConfig | DecoderConfig, lengths: Sequence[int]) -> float:
    """Floating point operations of training on one row, the mean over rows of so many predictions."""
    each = flops_per_patch if isinstance(config, PixarConfig) else flops_per_token
    counted = {length: lengths.count(length) for length in set(lengths)}
    return sum(count * length * each(config, length) for length, count in counted.items()) / len(lengths)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer, and the characters that its tokens hold on the text, </s> of each row counted as a token."""

    tokenizer: Tokenizer
    characters_per_token: float


def vocabulary_for(rows: Sequence[str], characters_per_token: float, tolerance: float = 0.01) -> Vocabulary:
    """The byte pair vocabulary, learned from these rows, whose tokens hold so many characters.

    Sizes are halved in between until the figure is within the tolerance, a share of it, or no size is left to try.
    Raises ValueError, with the most that is reached, where tokens cannot be so long: merges do not cross spaces.
    """
    sample = list(rows[:: -(-len(rows) // _ROWS)])
    tried: dict[int, Vocabulary] = {}

    def at(size: int) -> Vocabulary:
        if size not in tried:
            tokenizer = train_tokenizer(rows, size, max_bytes=_MEGABYTES << 20)
            tried[size] = Vocabulary(tokenizer, density(tokenizer, sample))
        return tried[size]

    low = NUM_SPECIAL_AND_BYTES + len(set("".join(rows))) + 1  # room for every character
    high = low
    while at(high).characters_per_token < characters_per_token:
        if high > LARGEST_VOCABULARY or at(high).tokenizer.vocab_size < high:
            raise ValueError(
                f"no vocabulary has {characters_per_token:.2f} characters a token on this text: "
                f"{at(high).tokenizer.vocab_size} pieces reach {at(high).characters_per_token:.2f}"
            )
        low, high = high, 2 * high
    while high - low > 1 and abs(at(high).characters_per_token / characters_per_token - 1) > tolerance:
        middle = (low + high) // 2
        low, high = (low, middle) if at(middle).characters_per_token >= characters_per_token else (middle, high)
    return at(high)


def density(tokenizer: Tokenizer, rows: Sequence[str]) -> float:
    """Characters a token, </s> of each row counted as one."""
    tokens = sum(len(ids) + 1 for ids in tokenizer.encode_batch(list(rows)))
    return sum(map(len, rows)) / tokens
