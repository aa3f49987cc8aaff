"""Ten thousand texts that tokenizers could disagree about, the same ones every time."""

import random
import sys
import unicodedata
from functools import cache

WORDS = (
    *(
        "a photo of a",
        "dog",
        "dog's",
        "isn't",
        "I'LL",
        "WE'VE",
        "don’t",
        "“quoted”",
        "naïve",
        "café",
        "schÃ¶n",
        "Ünïcödé",
    ),
    *(
        "3.14",
        "42",
        "2024-01-31",
        "½",
        "①",
        "２３",
        "Ⅷ",
        "x²",
        "!!!",
        "...",
        "#tag",
        "a_b",
        "C++",
        "-",
        "—",
        "…",
        "'s",
        "''",
    ),
    *(
        "&amp;",
        "&amp;lt;b&gt;",
        "&quot;",
        "&nbsp;",
        "&#39;",
        "&#x4e2d;",
        "&notanentity;",
        "<b>bold</b>",
        "https://a.b/c?d=e&f",
    ),
    *("e\u0301", "o\u0308\u0323", "İstanbul", "ΣΑΣ", "Ω", "ß", "ﬁ", "ǅ", "Ａｐｐｌｅ", "ͅ", "\u0345", "क्षि", "இந்தியா"),
    *(
        "红色的苹果",
        "，",
        "中文 and English混合",
        "繁體字",
        "日本語カナ",
        "ｶﾅ",
        "한국어",
        "ㄱㅏ",
        "龘",
        "𠀀",
        "𫠰",
        "〇",
        "（全角）",
    ),
    *("مرحبا", "שלום", "ไทย", "Привет", "Ελλάδα", "ქართული", "𝒻𝒶𝓃𝒸𝓎", "Ⓐ", "㎏", "℡"),
    *("😀", "👩‍👩‍👧", "🇨🇳", "☺️", "👍🏽", "🫠", "❤️‍🔥", "#️⃣"),
    *("[SEP]", "[sep]", "##ing", "[UNK]x", "</s>", "<pad>", "▁", "<0x41>"),
)
BLANKS = (
    " ",
    " ",
    " ",
    "",
    "",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "\u3000",
    "\xa0",
    "\u200b",
    "\u202f",
    "\u2028",
    "\u2029",
    "\x0b",
)
CONTROLS = (
    "\x00",
    "\x01",
    "\x07",
    "\x1b[31m",
    "\x7f",
    "\x85",
    "\xad",
    "\u200d",
    "\u202e",
    "\ufeff",
    "\ufffd",
    "\ue000",
)
RANGES = (
    *((0x20, 0x7F), (0xA0, 0x24F), (0x250, 0x36F), (0x370, 0x52F), (0x530, 0x6FF), (0x900, 0x11FF), (0x1E00, 0x2BFF)),
    *((0x2E80, 0x33FF), (0x4E00, 0x9FFF), (0xA000, 0xA7FF), (0xAC00, 0xD7A3), (0xF900, 0xFFEF), (0x10000, 0x10FFF)),
    *((0x11000, 0x11FFF), (0x1D400, 0x1D7FF), (0x1F000, 0x1FAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2CEAF)),
)


@cache
def strange_texts(count: int = 10_000, *, seed: int = 0) -> tuple[str, ...]:
    """``count`` texts: pieces of many scripts, entities, emoji, controls, lone surrogates, mixtures, and long ones."""
    rng = random.Random(seed)
    return ("", " ", "\x00", *(_text(rng) for _ in range(count - 3)))


def plain_texts(count: int = 10_000) -> tuple[str, ...]:
    """Those without what ftfy, HTML or a surrogate's lost half would change."""
    import html

    import ftfy

    def same(text: str) -> bool:
        return not any(0xD800 <= ord(letter) < 0xE000 for letter in text) and html.unescape(ftfy.fix_text(text)) == text

    return tuple(text for text in strange_texts(count) if same(text))


def _text(rng: random.Random) -> str:
    length = rng.choice((1, 2, 3, 4, 6, 9)) if rng.random() > 0.01 else rng.randint(100, 250)
    word = rng.random() < 0.02
    return "".join(_piece(rng) + ("" if word else rng.choice(BLANKS)) for _ in range(length))


def _piece(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.7:
        return rng.choice(WORDS)
    if kind < 0.76:
        return rng.choice(CONTROLS)
    if kind < 0.765:
        return rng.choice(("\ud83d", "\ude00", "\ud800a", "\ud83d\ude00"))
    if kind < 0.77:
        return "ab" * rng.choice((40, 60, 99, 101, 150))
    return _letter(rng)


def _letter(rng: random.Random) -> str:
    """An assigned one: what is unassigned here may be a letter in the tables of another library."""
    while True:
        letter = chr(rng.randint(*rng.choice(RANGES)))
        if unicodedata.category(letter) != "Cn":
            return letter


assert sys.maxunicode == 0x10FFFF
