"""How an emoji sequence is composed: base, skin tone, gender (used by the builder of the emoji set)."""

from __future__ import annotations

from typing import NamedTuple

JOINER, VARIATION_SELECTOR, KEYCAP = "\u200d", "\ufe0f", "\u20e3"
TONES = {"🏻": "light", "🏼": "medium-light", "🏽": "medium", "🏾": "medium-dark", "🏿": "dark"}
SIGNS = {"♂": "man", "♀": "woman"}

# People whose code point itself carries a gender -> (form without it, who it is).
GENDERED = {
    "👨": ("🧑", "man"), "👩": ("🧑", "woman"),
    "👦": ("🧒", "boy"), "👧": ("🧒", "girl"),
    "👴": ("🧓", "man"), "👵": ("🧓", "woman"),
    "🤴": ("🫅", "man"), "👸": ("🫅", "woman"),
    "🎅": ("🧑‍🎄", "man"), "🤶": ("🧑‍🎄", "woman"),
    "🫃": ("🫄", "man"), "🤰": ("🫄", "woman"),
    "🕺": ("💃", "man"), "💃": ("💃", "woman"),
    "👬": ("🧑‍🤝‍🧑", "man+man"), "👭": ("🧑‍🤝‍🧑", "woman+woman"), "👫": ("🧑‍🤝‍🧑", "woman+man"),
}  # fmt: skip

# Spelled-out groups -> the single code point that means the same.
ALIASES = {"🧑‍❤‍🧑": "💑", "🧑‍❤‍💋‍🧑": "💏", "🫱‍🫲": "🤝"}
HAIR = "🦰🦱🦳🦲"
FAMILY, CHILDREN = "👪", {"boy": "man", "girl": "woman"}


class Parts(NamedTuple):
    """`base` has neither tone nor gender; `tone` and `gender` are "none", one value, or several joined by "+"."""

    base: str
    tone: str
    gender: str


def parse(text: str) -> Parts:
    """Splits a sequence into base, skin tone and gender.

    >>> parse("👩🏿‍🚒")
    Parts(base='🧑‍🚒', tone='dark', gender='woman')
    """
    text = text.replace(VARIATION_SELECTOR, "")
    if text in TONES:  # the swatch alone is a thing of its own
        return Parts(text, "none", "none")
    tones, genders, members = [], [], []
    for member in text.replace(KEYCAP, "").split(JOINER):
        bare = "".join(char for char in member if char not in TONES)
        tones += [TONES[char] for char in member if char in TONES]
        if bare in SIGNS:
            genders.append(SIGNS[bare])
            continue
        neutral, gender = GENDERED.get(bare, (bare, ""))
        members.append(neutral)
        genders += [gender] if gender else []
    if len(members) > 1 and set(members) <= {"🧑", "🧒"}:
        return Parts(FAMILY, "none", "+".join(genders))
    base = JOINER.join(members)
    if len(set(tones)) == 1:  # both people alike: the same as the one tone of the single code point
        tones = tones[:1]
    gender = "+".join(CHILDREN.get(gender, gender) for gender in genders)
    return Parts(ALIASES.get(base, base), "+".join(tones) or "none", gender or "none")


def without_hair(base: str) -> str:
    """The base without hair: people who differ only in hair are too alike to lie on two sides of a split."""
    return base if base in HAIR else JOINER.join(member for member in base.split(JOINER) if member not in HAIR)
