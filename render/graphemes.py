"""Extended grapheme clusters: what a reader would call one character.

A layout must never cut between a letter and its accent, inside a Hangul syllable, between the two letters of a flag or
within an emoji glued by joiners. UAX #29 says where the text may be cut: every character has a class
(Grapheme_Cluster_Break), and rules GB1-GB999 look at the classes on both sides. Here a class is one letter, a text is a
string of such letters, and all rules together are one regular expression that matches one cluster at a time. Its
repeats are possessive (`*+`): they never give characters back, which makes the time linear whatever the input.

Python does not carry Grapheme_Cluster_Break, but the annex defines it by other properties, most of which it does
carry. What remains is written below as code point ranges: facts of the Unicode Character Database, version 16, and the
marks up to version 18 that Python 3.11, with version 14, does not know. Indic conjuncts stay whole (GB9c).
"""

import re
import unicodedata


def boundaries(text: str) -> list[int]:
    """End of every cluster, in characters, ascending; the last is len(text). Empty for an empty text."""
    if _JOINING.search(text) is None:
        return list(range(1, len(text) + 1))
    return [match.end() for match in _CLUSTER.finditer("".join(map(_CLASSES.__getitem__, text)))]


def clusters(text: str) -> list[str]:
    """The text cut into its clusters; joined they are the text."""
    ends = boundaries(text)
    return [text[start:end] for start, end in zip([0, *ends], ends)]


# Blocks in which no character can join another: Latin, Greek, Cyrillic, Hebrew and Arabic letters, Thai consonants,
# punctuation and symbols, Han, kana, Hangul syllables. Any other character, and a carriage return, sends the text
# the slow way, where it may still turn out that nothing joins.
_SIMPLE = (
    r"\x00-\x0C\x0E-\u02FF\u0370-\u0482\u048A-\u0590\u05D0-\u05FF\u0606-\u060F\u061B-\u064A\u0660-\u066F\u0671-\u06D5"
    r"\u06EE-\u06FF\u0E01-\u0E30\u0E40-\u0E46\u0E4F-\u0E5B\u10A0-\u10FF\u1E00-\u200B\u200E-\u20CF\u2100-\u2CEE"
    r"\u2D00-\u2D25\u2E00-\u3029\u3030-\u3098\u309B-\uA66E\uAC00-\uD7A3\uF900-\uFB1D\uFB1F-\uFDFF\uFE30-\uFF9D"
    r"\uFFA0-\uFFFF\U0001F000-\U0001F0FF\U0001F200-\U0001F3FA\U0001F400-\U0001FAFF\U00020000-\U0003FFFF"
)
_JOINING = re.compile(f"[^{_SIMPLE}]")

# The letters: c = CR, n = LF, . = other controls, x = Extend, V = Extend that links conjuncts (a virama), o = Extend
# that conjuncts do not reach across, z = zero-width joiner, s = SpacingMark, p = Prepend, K = consonant of a script
# that forms conjuncts, E = Extended_Pictographic, R = regional indicator, - = any other; Hangul: l, v, t = leading,
# vowel, trailing jamo, b = LV syllable, d = LVT syllable.
HANGUL = "l++(?:[bv]v*+t*+|dt*+)?|[bv]v*+t*+|[dt]t*+"  # GB6-GB8
_CONJUNCT = "K(?:[xz]*+V[xzV]*+K)*+"  # GB9c
_EMOJI = "E(?:[xVo]*+zE)*+"  # GB11
_FLAG = "RR?"  # GB12, GB13
_CORE = f"{HANGUL}|{_CONJUNCT}|{_EMOJI}|{_FLAG}|[^cn.]"
_CLUSTER = re.compile(
    f"cn|[cn.]|p++(?:{_CORE})?[xVozs]*+|(?:{_CORE})[xVozs]*+"  # GB3-GB5, GB9b before a core, GB9 and GB9a after it
)


class _Classes(dict[str, str]):
    """Letter of the class of every character met so far."""

    def __missing__(self, character: str) -> str:
        if len(self) > _MOST_CLASSES:
            self.clear()
        letter = self[character] = _class_of(character)
        return letter


_MOST_CLASSES = 1 << 16  # bounds the memory of a process that reads every code point there is
_CLASSES = _Classes()


def _class_of(character: str) -> str:
    """The letter by the definitions of UAX #29, table 2: what the tables name first, then the general category."""
    if character in _SINGLE:
        return _SINGLE[character]
    for letter, table in _TABLES:
        if table.match(character):
            return letter
    if "\uac00" <= character <= "\ud7a3":  # 28 syllables for each pair of lead and vowel; the first has no trail
        return "b" if (ord(character) - 0xAC00) % 28 == 0 else "d"
    category = unicodedata.category(character)
    if category in ("Mn", "Me"):
        return "x"
    if category == "Mc":
        return "-" if _MC_THAT_STANDS_ALONE.match(character) else "s"
    if category in ("Cc", "Cf", "Zl", "Zp") or _IGNORABLE_UNASSIGNED.match(character):
        return "."
    return "-"


def _set(ranges: str) -> re.Pattern[str]:
    """Matches one character out of hexadecimal ranges such as `0915-0939 09B2`."""
    return re.compile("[" + re.sub("[0-9A-F]+", lambda code: f"\\U{code[0]:0>8}", ranges).replace(" ", "") + "]")


_SINGLE = {"\r": "c", "\n": "n", "\u200d": "z", "\u200c": "o"}

# Conjunct linkers and consonants: Indic_Conjunct_Break, Unicode 16 and later (15.1 has the first six linkers).
_LINKER = _set(
    "094D 09CD 0ACD 0B4D 0C4D 0D4D 1039 17D2 1A60 1B44 1BAB A9C0 AAF6 10A3F 11133 113D0 1193E 11A47 11A99 11F42"
)
_CONSONANT = _set(
    "0915-0939 0958-095F 0978-097F 0995-09A8 09AA-09B0 09B2 09B6-09B9 09DC-09DD 09DF 09F0-09F1 0A95-0AA8 0AAA-0AB0"
    " 0AB2-0AB3 0AB5-0AB9 0AF9 0B15-0B28 0B2A-0B30 0B32-0B33 0B35-0B39 0B5C-0B5D 0B5F 0B71 0C15-0C28 0C2A-0C39"
    " 0C58-0C5A 0D15-0D3A 1000-102A 103F 1050-1055 105A-105D 1061 1065-1066 106E-1070 1075-1081 108E 1780-17B3"
    " 1A20-1A54 1B0B-1B0C 1B13-1B33 1B45-1B4C 1B83-1BA0 1BAE-1BAF 1BBB-1BBD A989-A98B A98F-A9B2 A9E0-A9E4 A9E7-A9EF"
    " A9FA-A9FE AA60-AA6F AA71-AA73 AA7A AA7E-AA7F AAE0-AAEA ABC0-ABDA 10A00 10A10-10A13 10A15-10A17 10A19-10A35"
    " 11103-11126 11144 11147 11380-11389 1138B 1138E 11390-113B5 11900-11906 11909 1190C-11913 11915-11916"
    " 11918-1192F 11A00 11A0B-11A32 11A50 11A5C-11A83 11F04-11F10 11F12-11F33"
)
# Numbering signs that enclose what follows, and letters written as a prefix of the next cluster.
_PREPEND = _set(
    "0600-0605 06DD 070F 0890-0891 08E2 0D4E 110BD 110CD 111C2-111C3 113D1 1193F 11941 11A3A 11A84-11A89 11D46 11F02"
)
# Extend that is no Mn or Me: spacing vowel signs that belong to a decomposition or end a consonant, halfwidth sound
# marks, musical stems, skin tones, tags.
_EXTEND = _set(
    "09BE 09D7 0B3E 0B57 0BBE 0BD7 0CC0 0CC2 0CC7-0CC8 0CCA-0CCB 0CD5-0CD6 0D3E 0D57 0DCF 0DDF 1715 1734 1B35 1B3B"
    " 1B3D 1B43 1BAA 1BF2-1BF3 302E-302F A953 FF9E-FF9F 111C0 11235 1133E 1134D 11357 113B8 113C2 113C5 113C7-113C9"
    " 113CF 114B0 114BD 115AF 116B6 11930 1193D 11F41 16FF0-16FF1 1D165-1D166 1D16D-1D172 1D250-1D252 1D25F"
    " 1D280-1D281 1F3FB-1F3FF E0020-E007F"
)
# SpacingMark that is no Mc: two vowels that are letters by category.
_SPACING = _set("0E33 0EB3")
# Marks that Unicode 14 did not have: Mn or Me, and Mc that are not in the table of Extend. A text must not be cut
# differently by another Python.
NONSPACING_SINCE_14 = _set(
    "05C8-05C9 0897 0B53-0B54 0ECE 1ACF-1AF0 10D69-10D6D 10ECB-10ECF 10EF0-10EFF 11241 113BB-113C0 113CE 113D0 113D2"
    " 113E1-113E2 11B60 11B62-11B64 11B66 11DF0 11F00-11F01 11F36-11F3A 11F40 11F42 11F5A 13440 13447-13455 1611E-16129"
    " 1612D-1612F 1D127-1D128 1D25B-1D25C 1E08F 1E4EC-1E4EF 1E5EE-1E5EF 1E6E3 1E6E6"
    " 1E6EE-1E6EF 1E6F5"
)
_SPACING_SINCE_14 = _set(
    "0CF3 113B9-113BA 113CA 113CC-113CD 11B61 11B65 11B67 11F03 11F34-11F35 11F3E-11F3F 1612A-1612C"
)
_MC_THAT_STANDS_ALONE = _set(
    "102B-102C 1038 1062-1064 1067-106D 1083 1087-108C 108F 109A-109C 1A61 1A63-1A64 AA7B AA7D 11720-11721"
)
_IGNORABLE_UNASSIGNED = _set("2065 FFF0-FFF8 13439-1343F E0000-E0FFF")
_PICTOGRAPHIC = _set(
    "00A9 00AE 203C 2049 2122 2139 2194-2199 21A9-21AA 231A-231B 2328 2388 23CF 23E9-23F3 23F8-23FA 24C2 25AA-25AB"
    " 25B6 25C0 25FB-25FE 2600-2605 2607-2612 2614-2685 2690-2705 2708-2712 2714 2716 271D 2721 2728 2733-2734 2744"
    " 2747 274C 274E 2753-2755 2757 2763-2767 2795-2797 27A1 27B0 27BF 2934-2935 2B05-2B07 2B1B-2B1C 2B50 2B55 3030"
    " 303D 3297 3299 1F000-1F0FF 1F10D-1F10F 1F12F 1F16C-1F171 1F17E-1F17F 1F18E 1F191-1F19A 1F1AD-1F1E5 1F201-1F20F"
    " 1F21A 1F22F 1F232-1F23A 1F23C-1F23F 1F249-1F3FA 1F400-1F53D 1F546-1F64F 1F680-1F6FF 1F774-1F77F 1F7D5-1F7FF"
    " 1F80C-1F80F 1F848-1F84F 1F85A-1F85F 1F888-1F88F 1F8AE-1F8FF 1F90C-1F93A 1F93C-1F945 1F947-1FAFF 1FC00-1FFFD"
)
_TABLES = (
    ("V", _LINKER),
    ("K", _CONSONANT),
    ("p", _PREPEND),
    ("x", _EXTEND),
    ("x", NONSPACING_SINCE_14),
    ("s", _SPACING),
    ("s", _SPACING_SINCE_14),
    ("E", _PICTOGRAPHIC),
    ("R", _set("1F1E6-1F1FF")),
    ("l", _set("1100-115F A960-A97C")),
    ("v", _set("1160-11A7 D7B0-D7C6 16D63 16D67-16D6A")),
    ("t", _set("11A8-11FF D7CB-D7FB")),
)
