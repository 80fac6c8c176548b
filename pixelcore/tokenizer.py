"""Text becomes token ids and comes back, through SentencePiece.

The vocabulary is learned by byte pair encoding (Sennrich et al., arXiv:1508.07909): starting from characters, the most
frequent neighbours are merged again and again. Byte fallback spells every character outside the vocabulary as its UTF-8
bytes, so no text is unknown; the normaliser is the identity, so decoding gives back exactly what was encoded. Ids 0 to
3 are <s>, </s>, <pad>, <unk>, ids 4 to 259 are the bytes, then come the merges by rank and last the single characters.

`byte_tokenizer` is the same without merges and characters: every text is its UTF-8 bytes. Nothing is learned, so its
model is written down as it is, in SentencePiece's own format.

A tokenizer *is* the bytes of its model: they travel inside checkpoints, and their hash tells two tokenizers apart.
This is the only file that imports sentencepiece.
"""

import hashlib
import io
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import sentencepiece

from pixelcore.errors import UserError

NUM_SPECIAL_AND_BYTES = 4 + 256
MAX_LINE_BYTES = 4192  # the trainer leaves out longer lines without a word, so they are cut before it sees them


class Tokenizer:
    """A SentencePiece model. `decode(encode(text)) == text` for every text without U+2581, the space mark of trained
    models; of bytes, for every text.

    model_bytes, sha256 (hexadecimal, of the bytes), vocab_size; bos_id, eos_id, pad_id, unk_id (-1 where a foreign
    model has none). Two tokenizers are equal when their bytes are; pickling keeps the bytes.
    """

    def __init__(self, model_bytes: bytes, source: str = "tokenizer model") -> None:
        """source: what an error message calls the bytes. Raises UserError when they are not a SentencePiece model."""
        if model_bytes.lstrip()[:1] == b"{":
            raise UserError(
                f"{source}: this is the JSON byte tokenizer that is written where sentencepiece is not installed; "
                "a SentencePiece model is needed: train one with `python -m train tokenizer`"
            )
        self.model_bytes = model_bytes
        self.sha256 = hashlib.sha256(model_bytes).hexdigest()
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            loaded = bool(model_bytes) and self._processor.LoadFromSerializedProto(model_bytes)
        except RuntimeError:
            loaded = False
        if not loaded:
            raise UserError(
                f"{source}: not a SentencePiece model, or damaged ({len(model_bytes)} bytes): restore the file, "
                "or train one with `python -m train tokenizer`"
            )
        self.vocab_size: int = self._processor.vocab_size()
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        self.pad_id: int = self._processor.pad_id()
        self.unk_id: int = self._processor.unk_id()

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Raises UserError when the file is missing, unreadable or no SentencePiece model."""
        try:
            model_bytes = Path(path).read_bytes()
        except OSError as cause:
            raise UserError(f"{path}: no tokenizer can be read here ({cause.strerror}): give a .model file") from cause
        return cls(model_bytes, source=str(path))

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes]]:
        return Tokenizer, (self.model_bytes,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.model_bytes == other.model_bytes

    def __hash__(self) -> int:
        return hash(self.sha256)

    def encode(self, text: str) -> list[int]:
        """The ids of `text` alone, without <s> or </s>; "<s>" written in the text is ordinary characters."""
        return self._processor.encode(text)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` of each text, on the calling thread; the interpreter lock is released while it runs."""
        return self._processor.encode(texts, num_threads=1)

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """`encode`, and which characters of the text each id stands for: the first, and the end. A space before a word
        belongs to the word's piece; each byte of a character stands for the whole of it. The space that a vocabulary
        puts before every text stands for nothing.

        Raises UserError if the tokenizer changes the text, so that its pieces do not say where they are from.
        """
        ids = self.encode(text)
        surfaces = list(map(self.surface, ids))
        pieces, waiting = [], b""
        for surface in surfaces:
            waiting += bytes([surface]) if isinstance(surface, int) else b""
            character = waiting.decode(errors="ignore")
            waiting = b"" if character else waiting
            pieces.append(character if isinstance(surface, int) else surface)
        spelled, marked = "".join(pieces).replace(" ", "▁"), text.replace(" ", "▁")
        place = len(marked) - len(spelled)  # -1 where a space was put before the text
        if spelled[-place:] != marked or place < -1:
            raise UserError("the tokenizer changes the text, so where its pieces stand in it is not known: use another")
        spans = []
        for surface, piece in zip(surfaces, pieces, strict=True):
            whole = 1 if isinstance(surface, int) else len(piece)  # a byte alone may be all there is of its character
            spans.append((max(place, 0), max(place + whole, 0)))
            place += len(piece)
        return ids, spans

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a whole sequence: control ids are silent, a byte that is not UTF-8 becomes U+FFFD."""
        return self._processor.decode(list(ids))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary's spelling of each id, such as "▁the" or "<0x0A>"."""
        return [self._processor.id_to_piece(id) for id in ids]

    def stream(self, prompt_ids: Sequence[int] = ()) -> "StreamDecoder":
        """A decoder for ids that arrive one at a time after `prompt_ids`, whose own text it does not repeat."""
        return StreamDecoder(self, prompt_ids)

    def vocab_text(self) -> str:
        """The content of the `.vocab` file that accompanies a model: a line "piece TAB score" for each id."""
        rows = ((self._processor.id_to_piece(id), self._processor.get_score(id)) for id in range(self.vocab_size))
        return "".join(f"{piece}\t{score:g}\n" for piece, score in rows)

    def surface(self, id: int) -> str | int:
        """What an id adds to a text: a string with "▁" for each space, or the value of a byte piece, 0 to 255."""
        if self._processor.is_byte(id):
            return int(self._processor.id_to_piece(id)[3:5], 16)
        if self._processor.is_control(id):
            return ""
        return self._processor.decode([id]) if self._processor.is_unknown(id) else self._processor.id_to_piece(id)


class StreamDecoder:
    """Turns ids into text as they arrive: all `push` results and `finish`, joined, are what `decode` makes of the
    whole.

    Decoding each id alone would lose the space that opens a word, because the first space of a *sequence* is not part
    of the text, and would break characters spelled in bytes. So the decoder remembers two things only: whether the
    sequence has begun, and the up to three bytes of a character that is not complete yet. A prompt that ends within a
    character leaves its bytes to the first push.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._bytes = b""
        self._begun = False
        for id in prompt_ids:
            self.push(id)

    def push(self, id: int) -> str:
        """The text that is certain once `id` is known; empty within a character."""
        surface = self._tokenizer.surface(id)
        if isinstance(surface, int):
            self._begun = True
            self._bytes += bytes([surface])
            return self._complete_characters()
        if surface and not self._begun:
            self._begun = True
            surface = surface.removeprefix("▁")
        return self.finish() + surface.replace("▁", " ")

    def finish(self) -> str:
        """The text of the bytes still waiting: each is U+FFFD, as nothing can complete the character any more."""
        text = "\N{REPLACEMENT CHARACTER}" * len(self._bytes)
        self._bytes = b""
        return text

    def _complete_characters(self) -> str:
        text = ""
        while self._bytes:
            try:
                text += self._bytes.decode()
                self._bytes = b""
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data":
                    break
                text += "\N{REPLACEMENT CHARACTER}"  # SentencePiece gives one for each byte, Python one for several
                self._bytes = self._bytes[1:]
        return text


def byte_tokenizer() -> Tokenizer:
    """The tokenizer whose pieces are <s>, </s>, <pad>, <unk> and the 256 bytes: a text is its UTF-8 bytes, each plus 4.

    Its normaliser changes nothing, not even a space into the space mark, which would be three bytes.
    """
    special = [("<s>", _CONTROL), ("</s>", _CONTROL), ("<pad>", _CONTROL), ("<unk>", _UNKNOWN)]
    pieces = [*special, *((f"<0x{byte:02X}>", _BYTE) for byte in range(256))]
    model = b"".join(_entry(1, _entry(1, text) + _entry(2, 0.0) + _entry(3, kind)) for text, kind in pieces)
    # model type char, vocabulary, byte fallback, ids of <unk> <s> </s> <pad>
    training = {3: 4, 4: len(pieces), 35: True, 40: 3, 41: 0, 42: 1, 43: 2}
    # name, no space put before the text, none taken away, none marked
    normalising = {1: "identity", 3: False, 4: False, 5: False}
    for number, table in ((2, training), (3, normalising)):
        model += _entry(number, b"".join(_entry(key, value) for key, value in table.items()))
    return Tokenizer(model, source="the byte tokenizer")


_UNKNOWN, _CONTROL, _BYTE = 2, 3, 6  # kinds of pieces in a SentencePiece model


def _entry(number: int, value: int | float | str | bytes) -> bytes:
    """A field of a protocol buffer, the format of SentencePiece models: an integer, a float, or what has a length."""
    if isinstance(value, int):
        return _variable_length(number << 3) + _variable_length(value)
    if isinstance(value, float):
        return _variable_length(number << 3 | 5) + struct.pack("<f", value)
    content = value.encode() if isinstance(value, str) else value
    return _variable_length(number << 3 | 2) + _variable_length(len(content)) + content


def _variable_length(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that another follows."""
    low = b""
    while number > 127:
        low += bytes([number & 127 | 128])
        number >>= 7
    return low + bytes([number])


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    progress: Callable[[int], object] | None = None,
    max_bytes: int = 32 << 20,
) -> Tokenizer:
    """Learn a vocabulary of at most `vocab_size` pieces; a text with fewer possible merges gives a smaller one.

    texts: read once, as a stream. Each line, without surrounding whitespace, is a sentence to learn from.
    progress: called with the number of UTF-8 bytes of each text read.
    max_bytes: how much text the trainer holds. Of a larger text every 2nd, 4th, 8th ... line is kept.
    The same texts give the same bytes. Raises UserError when there is no text or vocab_size is too small.
    """
    if vocab_size <= NUM_SPECIAL_AND_BYTES:
        raise UserError(
            f"tokenizer.vocab_size = {vocab_size} must be more than {NUM_SPECIAL_AND_BYTES}, the special and the byte "
            "pieces: ask for 1000 or more"
        )
    lines = _sample_lines(texts, max_bytes, progress)
    if not lines:
        raise UserError("the tokenizer has no text to learn from: every document given is empty; check the data")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            character_coverage=0.9995,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_digits=False,
            max_sentence_length=MAX_LINE_BYTES,
            bos_id=0,
            eos_id=1,
            pad_id=2,
            unk_id=3,
            minloglevel=2,
        )
    except RuntimeError as cause:
        if "smaller than required_chars" not in str(cause):
            raise
        required = str(cause).split("required_chars.", 1)[1].split(".")[0].split("vs")[-1].strip()
        raise UserError(
            f"tokenizer.vocab_size = {vocab_size} cannot hold the characters of this text: ask for more than {required}"
        ) from cause
    return Tokenizer(model.getvalue())


def _sample_lines(texts: Iterable[str], max_bytes: int, progress: Callable[[int], object] | None) -> list[str]:
    """Every n-th line, n the smallest power of two for which the kept lines have at most `max_bytes`."""
    kept: list[str] = []
    kept_bytes = 0
    stride = 1
    number = 0
    for text in texts:
        for line in _lines(text):
            if number % stride == 0:
                kept.append(line)
                kept_bytes += len(line.encode())
            number += 1
            while kept_bytes > max_bytes:
                kept = kept[::2]
                kept_bytes = sum(len(line.encode()) for line in kept)
                stride *= 2
        if progress is not None:
            progress(len(text.encode()))
    return kept


def _lines(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        line = line.replace("▅", " ").strip()  # the trainer leaves out lines with U+2585, its mark of the unknown
        while len(line) * 4 > MAX_LINE_BYTES and len(line.encode()) > MAX_LINE_BYTES:
            head = line.encode()[:MAX_LINE_BYTES].decode(errors="ignore")
            cut = head.rfind(" ") + 1 or len(head)
            yield head[:cut].strip()
            line = line[cut:].strip()
        if line:
            yield line
