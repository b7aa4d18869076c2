"""Builds the embedded emoji set from Debian packages: `python -m mixcon.data.build_emoji`.

Needs `apt-get install fonts-noto-color-emoji unicode-cldr-core unicode-data` and `pip install mixcon[emoji-builder]`.
Reading the result needs neither. The build is deterministic: same packages and seed, same rows, pixels and splits.
"""

from __future__ import annotations

import argparse
import io
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mixcon.data.emoji_parts import Parts, parse
from mixcon.data.emoji_splits import Report, alike, split_composition, split_concept

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
CLDR = "/usr/share/unicode/cldr/common"
EMOJI_TEST = "/usr/share/unicode/emoji/emoji-test.txt"
COPYRIGHTS = {
    "NOTO_LICENSE.txt": "/usr/share/doc/fonts-noto-color-emoji/copyright",
    "CLDR_LICENSE.txt": "/usr/share/doc/unicode-cldr-core/copyright",
    "UNICODE_DATA_LICENSE.txt": "/usr/share/doc/unicode-data/copyright",
}
LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "pl", "ru", "tr", "ar", "hi", "zh", "ja", "ko", "vi", "sw", "id", "cs")
SIZE = 64
VARIATION_SELECTOR = "\ufe0f"


class Entry(NamedTuple):
    """One emoji, before images and names are attached."""

    text: str  # fully-qualified sequence
    group: str
    subgroup: str


def read_entries(path: str) -> list[Entry]:
    """Fully-qualified emoji and components of emoji-test.txt, in its order."""
    group = subgroup = ""
    entries = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        elif line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ")
        elif match := re.match(r"([0-9A-F ]+); (fully-qualified|component) ", line):
            text = "".join(chr(int(code, 16)) for code in match[1].split())
            entries.append(Entry(text, group, subgroup))
    # CLDR also names these two keycap bases, and the font draws them; emoji-test.txt does not list them.
    return [*entries, Entry("#", "Component", "keycap-base"), Entry("*", "Component", "keycap-base")]


def read_names(folder: str, language: str) -> tuple[dict[str, str], dict[str, str]]:
    """`(name, keywords)` by sequence without variation selectors; keywords joined by " | " as CLDR writes them."""
    names: dict[str, str] = {}
    keywords: dict[str, str] = {}
    for kind in ("annotations", "annotationsDerived"):
        root = ElementTree.parse(f"{folder}/{kind}/{language}.xml").getroot()
        for node in root.iter("annotation"):
            table = names if node.get("type") == "tts" else keywords
            table[(node.get("cp") or "").replace(VARIATION_SELECTOR, "")] = (node.text or "").strip()
    return names, keywords


class Glyphs:
    """Colour bitmaps of a CBDT font by sequence, with ligatures resolved through GSUB."""

    def __init__(self, path: str):
        from fontTools.ttLib import TTFont

        font = TTFont(path)
        self._cmap = font.getBestCmap()
        self._bitmaps = font["CBDT"].strikeData[0]
        self._ligatures = {
            (first, *ligature.Component): ligature.LigGlyph
            for lookup in font["GSUB"].table.LookupList.Lookup
            if lookup.LookupType == 4
            for table in lookup.SubTable
            for first, ligatures in table.ligatures.items()
            for ligature in ligatures
        }

    def render(self, text: str) -> np.ndarray | None:
        """uint8 [64, 64, 3] on white, or None where the font has no single colour glyph for the sequence."""
        names = tuple(self._cmap.get(ord(char)) for char in text.replace(VARIATION_SELECTOR, ""))
        name = names[0] if len(names) == 1 else self._ligatures.get(names)
        if name not in self._bitmaps:
            return None
        glyph = Image.open(io.BytesIO(self._bitmaps[name].imageData)).convert("RGBA")
        side = max(glyph.size)
        canvas = Image.new("RGBA", (side, side), "white")
        canvas.alpha_composite(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
        return np.asarray(canvas.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def encode(image: np.ndarray) -> bytes:
    """Lossless WebP."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", lossless=True, quality=50, method=4)
    return buffer.getvalue()


def collect() -> tuple[list[Entry], list[Parts], list[np.ndarray], dict[str, list[str]], dict[str, list[str]]]:
    """Every emoji with a colour glyph and a name in all languages."""
    glyphs = Glyphs(FONT)
    tables = {language: read_names(CLDR, language) for language in LANGUAGES}
    entries, parts, images = [], [], []
    names: dict[str, list[str]] = defaultdict(list)
    keywords: dict[str, list[str]] = defaultdict(list)
    for entry in read_entries(EMOJI_TEST):
        key = entry.text.replace(VARIATION_SELECTOR, "")
        image = glyphs.render(entry.text)
        if image is None or not all(tables[language][0].get(key) for language in LANGUAGES):
            continue
        entries.append(entry)
        parts.append(parse(entry.text))
        images.append(image)
        for language in LANGUAGES:
            names[language].append(tables[language][0][key])
            keywords[language].append(tables[language][1].get(key, ""))
    return entries, parts, images, names, keywords


def build(out: Path, *, seed: int = 0) -> Report:
    """Writes `emoji.parquet` and the licences into `out`."""
    entries, parts, images, names, keywords = collect()
    same, similar = alike(images, tolerance=1 / 255), alike(images, tolerance=0.04)
    strata = [entry.subgroup for entry in entries]
    all_names = [tuple(f"{lang}:{names[lang][i].casefold()}" for lang in LANGUAGES) for i in range(len(parts))]
    concept, concept_report = split_concept(parts, similar, all_names, strata, seed=seed)
    composition, composition_report = split_composition(parts, same, all_names, seed=seed)
    columns: dict[str, list] = {
        "emoji": [entry.text for entry in entries],
        "image": [encode(image) for image in images],
        "group": [entry.group for entry in entries],
        "subgroup": strata,
        "base": [part.base for part in parts],
        "tone": [part.tone for part in parts],
        "gender": [part.gender for part in parts],
        "concept": concept,
        "composition": composition,
    }
    columns |= {f"name_{language}": names[language] for language in LANGUAGES}
    columns |= {f"keywords_{language}": keywords[language] for language in LANGUAGES}
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table(columns), out / "emoji.parquet", compression="zstd", compression_level=19, row_group_size=len(entries)
    )
    for name, source in COPYRIGHTS.items():
        (out / name).write_bytes(Path(source).read_bytes())
    counts = {"pairs": len(entries), "bases": len({part.base for part in parts}), "distinct pictures": len(set(same))}
    counts |= {
        f"{split} {side}": n
        for split, sides in (("concept", concept), ("composition", composition))
        for side, n in sorted(Counter(sides).items())
    }
    return {**counts, **concept_report, **composition_report}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "embedded")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name, count in build(args.out, seed=args.seed).items():
        print(f"{count:6d}  {name}")


if __name__ == "__main__":
    main()
