"""What was promised, as data, and whether a book of the bench keeps it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Entry = Mapping[str, Any]
Book = Mapping[str, Any]


def measured(book: Book, kernel: str) -> list[Entry]:
    return [x for x in book["cases"] if x["kernel"] == kernel and x["status"] == "measured"]


def ours_of(entry: Entry) -> Entry:
    return next(x for x in entry["contestants"] if x["role"] == "ours")


def milliseconds(contestant: Entry, direction: str) -> float:
    return contestant[direction]["median_ms"]


def over(entries: Sequence[Entry], peers: Sequence[str], direction: str) -> list[float]:
    """The time of the fastest of these peers over ours, wherever one of them and ours were timed."""
    found = []
    for entry in entries:
        ours = ours_of(entry)
        timed = [x for x in entry["contestants"] if x["name"] in peers and direction in x and direction in ours]
        if timed:
            found.append(min(milliseconds(x, direction) for x in timed) / milliseconds(ours, direction))
    return found


@dataclass(frozen=True)
class Target:
    """A promise over every shape, or over those that `cases` names, or that move at least so many bytes. Without peers
    it is about the share of a copy's bandwidth; with them about the time of the fastest of them over ours, at least, or
    about ours over its, at most. moonshot: what would be splendid."""

    what: str
    kernel: str
    direction: str
    peers: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    cases: tuple[str, ...] = ()
    least_bytes: int = 0
    moonshot: float | None = None

    def line(self, book: Book) -> str:
        sign, bound = (">=", self.least) if self.least is not None else ("<=", self.most)
        assert bound is not None
        start = f"{self.what:60}{f'{sign} {self._text(bound)}':>10}"
        values = self.values(book)
        if not values:
            return f"{start}  unmeasured"
        worst = min(values) if self.least is not None else max(values)
        kept = worst >= bound if self.least is not None else worst <= bound
        shapes = f"worst of {len(values)}" if len(values) > 1 else "one shape"
        return f"{start}  {self._text(worst)} ({shapes}) {'kept' if kept else 'MISSED'}{self._beyond(worst)}"

    def values(self, book: Book) -> list[float]:
        """What was measured, at each shape."""
        entries = [x for x in measured(book, self.kernel) if not self.cases or x["case"] in self.cases]
        if self.least_bytes:
            entries = [x for x in entries if x["bytes"][self.direction] >= self.least_bytes]
        if not self.peers:
            found = [ours_of(x).get(self.direction, {}).get("share_of_copy") for x in entries]
            return [share for share in found if share is not None]
        ratios = over(entries, self.peers, self.direction)
        return ratios if self.most is None else [1 / ratio for ratio in ratios]

    def _text(self, value: float) -> str:
        return f"{value:.2f}x" if self.peers else f"{value:.0%}"

    def _beyond(self, worst: float) -> str:
        if self.moonshot is None:
            return ""
        return f", moonshot {self._text(self.moonshot)} {'reached' if worst >= self.moonshot else 'not reached'}"


def _bandwidth(kernel: str, direction: str, least: float) -> Target:
    return Target(f"{kernel}, {direction}, of the copy's bandwidth", kernel, direction, least=least)


_ENCODER = ("pixel-base, encoder", "pixel-base, encoder, dropped")
_DECODER = ("pixel-base, decoder", "pixel-base, decoder, dropped")
_TOKENS = ("100m, 32 x 1024",)
_MASKED = ("SDPA cuDNN, padded", "SDPA efficient, padded", "SDPA math, padded", "SDPA's choice, padded")

TARGETS: tuple[Target, ...] = (
    _bandwidth("add_norm", "forward", 0.90),
    _bandwidth("add_norm", "backward", 0.80),
    Target("add_norm, backward, over Liger-Kernel", "add_norm", "backward", ("Liger-Kernel",), 1.5),
    Target("add_norm, backward, over torch.compile", "add_norm", "backward", ("torch.compile",), 1.5),
    _bandwidth("glu", "forward", 0.92),
    _bandwidth("glu", "backward", 0.92),
    _bandwidth("split_rope", "forward", 0.88),
    _bandwidth("split_rope", "backward", 0.88),
    Target("split_rope over eager", "split_rope", "both", ("eager",), 3.0),
    Target("patch_embed over the published chain", "embed_strips", "both", ("as published",), 4.0),
    Target(
        "head and cross_entropy, in times of their three products",
        "head_cross_entropy",
        "both",
        ("its three products",),
        most=1.2,
    ),
    *(
        Target(f"{loss} over {peer}", loss, "both", (peer,), least)
        for loss in ("pixel_mse", "pixel_bce", "mixture_bce")
        for peer, least in (("eager", 3.0), ("torch.compile", 1.2))
    ),
    Target("adamw over torch fused, clip, cast", "clip_adamw", "forward", ("torch fused, clip, cast",), 1.15),
    *(
        Target(f"attention, {where}, over {name}", "attention", "both", names, least, cases=cases, moonshot=moonshot)
        for where, cases, name, names, least, moonshot in (
            ("pixel encoder", _ENCODER, "FlashAttention-2", ("FlashAttention-2, packed",), 1.15, None),
            ("pixel encoder", _ENCODER, "packed cuDNN", ("cuDNN, packed", "cuDNN frontend, packed"), 1.0, None),
            ("pixel encoder", _ENCODER, "FlexAttention", ("FlexAttention, packed",), 1.25, None),
            ("pixel encoder", _ENCODER, "padded SDPA with its mask", _MASKED, 1.6, None),
            ("pixel decoder", _DECODER, "FlashAttention-2", ("FlashAttention-2, packed",), 1.15, None),
            ("100m", _TOKENS, "cuDNN", ("SDPA cuDNN, padded",), 0.97, 1.1),
            ("100m", _TOKENS, "SDPA's choice", ("SDPA's choice, padded",), 1.3, None),
        )
    ),
    Target(
        "rope_attention, pixar-85m, over RoPE and cuDNN",
        "rope_attention",
        "both",
        ("our RoPE, cuDNN SDPA", "RoPE and cuDNN SDPA, compiled"),
        1.4,
        cases=("pixar-85m, 384 x 360",),
    ),
    *(
        Target(
            f"decode_attention from {megabytes} MB, of the copy's bandwidth",
            "decode_attention",
            "forward",
            least=least,
            least_bytes=megabytes * 1_000_000,
        )
        for megabytes, least in ((64, 0.75), (16, 0.50))
    ),
)
