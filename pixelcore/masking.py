"""Which patches of a strip are hidden: the masks of PIXEL, of PIXEL-M4 and of people, a thousand rows at a time.

A masked autoencoder sees part of its patches and paints the rest. Hide single patches at random and a letter cut in
half is finished by its other half, so PIXEL hides spans of one to six patches, each with as many visible patches on
either side as it has itself. Its generator is a loop of rejections, attempt after attempt until a quarter of the row
is hidden, and that loop is not ours to simplify: another way to place spans is another distribution of masks. But no
row waits for another one, so all rows take their attempts together. What an attempt draws is a hash of the row's seed
and the number of the attempt. Hence a mask depends on its own row alone, whatever the batch and its order, attempts
can be tested several at once, and nothing has to be saved to resume.

A row's mask is kept as bits, 64 to a word: the span and its two sides are at most 18 neighbouring bits, which one shift
brings together. Left out: spacings other than the span's own length. From a ratio of about one half on spans no longer
find enough places, and single patches fill up the rest. Rules: specs/pixel.md, section 2.4. Hash: splitmix64 (Steele,
Lea and Flood, 2014).
"""

import re

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pixelcore.errors import UserError

MASK_RULES = ("random", "span", "span-m4")
MAX_SPAN = 6
MAX_ATTEMPTS = 100  # for one span; then the row gets no more spans
MAX_WINDOW = 8  # attempts of a row tested at once; 4 and 32 were slower
MAX_LENGTH = 2**16 - 1

# Numbers to numpy's uint64, as an int beside them would become int64 or a double.
_ONE, _HALF, _LOW_HALF = np.uint64(1), np.uint64(32), np.uint64(2**32 - 1)
_WORD_SHIFT, _IN_WORD = np.uint64(6), np.uint64(63)  # bit i is bit i & 63 of word i >> 6
_PLACE = np.uint64(MAX_LENGTH)  # the bits of a patch's noise that hold its place
_ABOVE_NOISE = np.uint64(2**63)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SPAN_STREAM, _NOISE_STREAM = 1, 2

# Ten equally likely draws: the lengths 1 to 4 have weight 0.2, the lengths 5 and 6 have 0.1.
_SPANS = np.array([1, 1, 2, 2, 3, 3, 4, 4, 5, 6], dtype=np.uint64)
# By span length: the bits of a span, and those of its two sides where the left side begins at bit 0.
_SPAN_BITS = np.array([2**size - 1 for size in range(MAX_SPAN + 1)], dtype=np.uint64)
_SIDE_BITS = _SPAN_BITS | _SPAN_BITS << np.arange(0, 2 * MAX_SPAN + 2, 2, dtype=np.uint64)

_LANES = 1024  # attempts tested in one call of numpy: fewer cost as much
_STAY = 0.9  # of the rows still at work, or the others are dropped


def draw_masks(
    rule: str, lengths_B: ArrayLike, seeds_B: ArrayLike, ratio: float, padded_length: int | None = None
) -> NDArray[np.bool_]:
    """Masks of many rows: bool [B, L], True = hidden. Row b depends on nothing but its own length and seed.

    rule: "random", single patches; "span", PIXEL's spans, where the first attempt of a row is made in its text;
    "span-m4", PIXEL-M4's, where the first attempt of every span is: text is hidden more often than padding.
    lengths_B: patches of each row, the end patch included. seeds_B: int64, see `mix_seed`. ratio: in (0, 1).
    A call takes milliseconds even for one row: draw many rows at once.

    Without `padded_length` every row is masked over its own length n, only its own patches are hidden, and L is the
    largest length; the two span rules are then the same. With it the originals are followed: L = padded_length for
    every row, padding is hidden like text, and the text's mask is the first lengths_B[b] of a row. Either way exactly
    L - int(L * (1 - ratio)) patches of a row (n for L without padding) are hidden, as in the models: single patches are
    added where spans fell short.

    At least one patch of the text is hidden and one stays visible. Here alone the originals differ: of a text of up to
    five patches their spans often leave nothing.
    Raises UserError for an unknown rule, a ratio or a length out of range. Source: specs/pixel.md, section 2.4.
    """
    if rule not in MASK_RULES:
        raise UserError(f"mask rule = {rule!r} is unknown: use one of {', '.join(MASK_RULES)}")
    if not 0 < ratio < 1:
        raise UserError(f"mask ratio = {ratio} must lie between 0 and 1, both excluded: PIXEL hides 0.25")
    lengths = np.asarray(lengths_B, dtype=np.int64)
    seeds = np.asarray(seeds_B, dtype=np.int64)
    assert lengths.ndim == 1 and lengths.shape == seeds.shape, f"{lengths.shape} lengths, {seeds.shape} seeds"
    if not len(lengths):
        return np.zeros((0, padded_length or 0), dtype=np.bool_)
    _check_lengths(lengths, padded_length)
    width = int(lengths.max()) if padded_length is None else padded_length
    sizes = lengths if padded_length is None else np.full_like(lengths, padded_length)
    counts = np.clip(sizes - (sizes * (1 - ratio)).astype(np.int64), 1, sizes - 1)
    if rule == "random":
        hidden = _largest(_noise(seeds, width), sizes, counts)
    else:
        wanted = np.clip(np.ceil(ratio * sizes).astype(np.int64), 1, sizes - 1)
        hidden = _draw_spans(seeds, sizes, lengths, wanted, each_span=rule == "span-m4")[:, :width].copy()
        unequal = np.flatnonzero(np.count_nonzero(hidden, axis=1) != counts)
        if len(unequal):  # what the spans hide comes first, as in the models, and noise decides about the rest
            noise = _noise(seeds[unequal], width) + hidden[unequal] * _ABOVE_NOISE
            hidden[unequal] = _largest(noise, sizes[unequal], counts[unequal])
    return hidden if padded_length is None else _touch_text(hidden, lengths, seeds)


def mix_seed(run_seed: int, positions: ArrayLike) -> NDArray[np.int64]:
    """The seed of the row at each position of the data's order: int64, of the shape of `positions`.

    run_seed: any integer. Neighbouring positions and neighbouring run seeds give unrelated seeds.
    """
    run = _finalise(np.array([run_seed % 2**64], dtype=np.uint64))
    places = np.atleast_1d(np.asarray(positions, dtype=np.int64)).view(np.uint64)
    return _finalise(run + places * _GOLDEN).view(np.int64).reshape(np.shape(positions))


def parse_patches(text: str, length: int) -> NDArray[np.bool_]:
    """The mask that "3-8,12" names: bool [length], True for patches 3 to 8 and 12. The first patch of a strip is 0.

    Raises UserError for anything but numbers and ranges with commas between them, and whatever `check_mask` refuses.
    """
    chosen: list[range] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part, re.ASCII)
        if found is None:
            raise UserError(f"patches {text!r}: {part.strip()!r} is not a patch or a range: write them like 3-8,12")
        first = int(found[1])
        last = first if found[2] is None else int(found[2])
        if last < first:
            raise UserError(f"patches {text!r}: the range {part.strip()} ends before it begins: write {last}-{first}")
        if last >= length:
            raise UserError(_beyond(last, length))
        chosen.append(range(first, last + 1))
    mask = np.zeros(length, dtype=np.bool_)
    for patches in chosen:
        mask[patches.start : patches.stop] = True
    return check_mask(mask, length)


def check_mask(mask: ArrayLike, length: int) -> NDArray[np.bool_]:
    """A mask made by hand, cut to the strip: bool [length], True = hidden.

    mask: one truth value (or 0 and 1) for each of the strip's `length` patches, or more of them if the rest is False.
    Raises UserError if it is too short, hides nothing, everything, or a patch that the strip does not have.
    """
    flags = np.asarray(mask)
    if flags.ndim != 1 or not np.isin(flags, (0, 1)).all():
        raise UserError(f"a mask of shape {list(flags.shape)}: it must be one row of 0 and 1, a value for each patch")
    flags = flags.astype(np.bool_)
    if len(flags) < length:
        raise UserError(f"the mask has {len(flags)} values for a strip of {length} patches: give one for each patch")
    if flags[length:].any():
        raise UserError(_beyond(int(np.flatnonzero(flags)[-1]), length))
    flags = flags[:length]
    if not flags.any():
        raise UserError(f"the mask hides none of the strip's {length} patches: hide at least one")
    if flags.all():
        raise UserError(f"the mask hides all {length} patches of the strip: leave at least one visible")
    return flags


def _check_lengths(lengths: NDArray[np.int64], padded_length: int | None) -> None:
    if lengths.min() < 2:
        row = int(lengths.argmin())
        raise UserError(
            f"row {row} has length {lengths[row]}: a mask hides one patch and leaves one visible; leave the row out"
        )
    if padded_length is not None and lengths.max() > padded_length:
        row = int(lengths.argmax())
        raise UserError(
            f"row {row} has length {lengths[row]} and the padded length is {padded_length}: cut the row or pad to more"
        )
    longest = max(int(lengths.max()), padded_length or 0)
    if longest > MAX_LENGTH:
        raise UserError(f"a length of {longest} patches: masks are drawn up to {MAX_LENGTH}; cut the row")


def _beyond(patch: int, length: int) -> str:
    return f"patch {patch} is beyond the strip: it has {length} patches, 0 to {length - 1}"


def _draw_spans(
    seeds: NDArray[np.int64],
    sizes: NDArray[np.int64],
    lengths: NDArray[np.int64],
    wanted: NDArray[np.int64],
    each_span: bool,
) -> NDArray[np.bool_]:
    """Spans until `wanted` patches of each row are hidden or one finds no place: bool [B, at least the largest size].

    sizes: places of each row. lengths: those of them where a row's first attempt (each_span: every span's) looks.
    A row's attempts are tested in order against the row as it is. The first that fits changes it, and those after it
    are drawn again. So a window of many attempts gives the very spans that one attempt at a time would.
    """
    num_words = (int(sizes.max()) + 3 * MAX_SPAN) // 64 + 2
    words = np.zeros(len(seeds) * num_words, dtype=np.uint64)  # place p is bit p + MAX_SPAN: a left side fits before 0
    # The rows still at work, an entry each. attempt: the next one's number; tries: attempts since the last span.
    base = np.arange(0, len(words), num_words, dtype=np.uint64)
    key = _keys(seeds, _SPAN_STREAM)
    size, length, missing = sizes.astype(np.uint64), lengths.astype(np.uint64), wanted.astype(np.uint64)
    attempt, tries = np.zeros_like(key), np.zeros_like(key)
    window = 1
    while len(key):
        steps = np.arange(window, dtype=np.uint64)[:, None]  # [W, 1] beside [rows]
        bits = _finalise(key + (attempt + steps) * _GOLDEN)
        span = _SPANS[(bits >> _HALF) * np.uint64(len(_SPANS)) >> _HALF]
        room = np.maximum(size, span) - span
        fresh = tries == 0 if each_span else attempt == 0
        room[0] = np.where(fresh, np.maximum(length, span[0]) - span[0], room[0])
        left = ((bits & _LOW_HALF) * (room + _ONE) >> _HALF) + np.uint64(MAX_SPAN)

        near = _window_at(words, base, left - span)
        new = span - np.bitwise_count(near >> span & _SPAN_BITS[span])
        fits = (near & _SIDE_BITS[span] == 0) & (span < size) & (new > 0) & (new <= missing)
        fits &= tries + steps < MAX_ATTEMPTS

        first = fits.argmax(axis=0)
        hit = np.flatnonzero(fits.any(axis=0))
        first = first[hit]
        attempt += np.uint64(window)
        tries += np.uint64(window)
        attempt[hit] -= (window - 1 - first).astype(np.uint64)
        tries[hit] = 0
        missing[hit] -= new[first, hit]
        _set_bits(words, base[hit], left[first, hit], span[first, hit])

        busy = (missing > 0) & (tries < MAX_ATTEMPTS)
        window = _next_window(window, len(key), len(hit))
        if np.count_nonzero(busy) < _STAY * len(key):
            base, key, size, length, missing, attempt, tries = (
                array[busy] for array in (base, key, size, length, missing, attempt, tries)
            )
    octets = words.reshape(len(seeds), num_words).astype("<u8", copy=False).view(np.uint8)
    return np.unpackbits(octets, axis=1, bitorder="little").view(np.bool_)[:, MAX_SPAN:]


def _window_at(words: NDArray[np.uint64], base: NDArray[np.uint64], start: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The 64 bits that begin at bit `start` of the row whose words begin at `base`."""
    word, shift = base + (start >> _WORD_SHIFT), start & _IN_WORD
    return words[word] >> shift | words[word + _ONE] << _ONE << (_IN_WORD - shift)


def _set_bits(
    words: NDArray[np.uint64], base: NDArray[np.uint64], start: NDArray[np.uint64], span: NDArray[np.uint64]
) -> None:
    """Set `span` bits from bit `start` on, in rows that are all different."""
    word, shift, bits = base + (start >> _WORD_SHIFT), start & _IN_WORD, _SPAN_BITS[span]
    words[word] |= bits << shift
    words[word + _ONE] |= bits >> _ONE >> (_IN_WORD - shift)


def _next_window(window: int, num_rows: int, num_hits: int) -> int:
    """How many attempts to test at once. It decides the time only."""
    if num_hits > 0.8 * num_rows:
        window //= 2
    elif num_hits < 0.5 * num_rows:
        window *= 2
    return min(max(window, 1, _LANES // num_rows), MAX_WINDOW)


def _largest(noise: NDArray[np.uint64], sizes: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """In row b the counts[b] patches with the largest noise among the first sizes[b]: bool [B, L]."""
    width = noise.shape[1]
    if sizes.min() < width:
        noise = np.where(np.arange(width) < sizes[:, None], noise, 0)
    threshold = np.take_along_axis(np.sort(noise, axis=1), width - counts[:, None], axis=1)
    return noise >= threshold


def _touch_text(hidden: NDArray[np.bool_], lengths: NDArray[np.int64], seeds: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where all text is hidden, or none of it, one of its patches changes places with one of the padding.

    To hide, the one with the most noise is taken, and the least to uncover: random masking would have gone on so.
    """
    width = hidden.shape[1]
    text = np.arange(width) < lengths[:, None]
    num_hidden = np.count_nonzero(hidden & text, axis=1)
    rows = np.flatnonzero((num_hidden == 0) | (num_hidden == lengths))
    if len(rows):
        noise, covered = _noise(seeds[rows], width), hidden[rows]
        hides = text[rows] == (num_hidden[rows] == 0)[:, None]  # where a patch is to be hidden: in the text or outside
        hidden[rows, np.where(~covered & hides, noise, 0).argmax(axis=1)] = True
        hidden[rows, np.where(covered & ~hides, noise, ~np.uint64(0)).argmin(axis=1)] = False
    return hidden


def _noise(seeds: NDArray[np.int64], width: int) -> NDArray[np.uint64]:
    """A number for each patch, [B, width]: random, from 1 to 2^63 - 1, and no two of a row equal."""
    places = np.arange(1, width + 1, dtype=np.uint64)
    noise = _finalise(_keys(seeds, _NOISE_STREAM)[:, None] + places * _GOLDEN)
    return noise >> _ONE & ~_PLACE | places


def _keys(seeds: NDArray[np.int64], stream: int) -> NDArray[np.uint64]:
    return _finalise(_finalise(seeds.view(np.uint64)) + np.uint64(stream))


def _finalise(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: every bit of the result depends on every bit given."""
    bits = (bits ^ bits >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ bits >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return bits ^ bits >> np.uint64(31)
