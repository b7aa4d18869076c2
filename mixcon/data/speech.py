"""Recordings and what is said in them: a table of wav files and sentences."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from mixcon.data import audio
from mixcon.data.catalog import locate
from mixcon.data.records import BadRecord, Record
from mixcon.errors import InputError


class SpeechText:
    """Log-mel frames and text of every row of a table, read when asked for.

    Args:
        folder: that `locate` finds, or a path. table: in it, tab- or comma-separated with a header (Common Voice has
            `train.tsv`).
        clips: folder of the sounds, in `folder`. path, text: names of the columns. Sounds are wav files; one of another
            ending is looked for as .wav.
        rate: samples per second; another rate is a bad record.
        seconds: longer sounds are cut, shorter ones padded with silence. bands: of the spectrogram.

    Raises:
        InputError: the folder, the table or a column is not there, or an empty table.

    Example:
        >>> source = SpeechText("common_voice", "train.tsv")  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: str,
        table: str = "train.tsv",
        *,
        clips: str = "clips",
        path: str = "path",
        text: str = "sentence",
        rate: int = 16_000,
        seconds: float = 30.0,
        bands: int = 80,
    ):
        root = Path(folder) if Path(folder).is_dir() else locate(folder)
        if not (root / table).is_file():
            raise InputError(f"there is no table {root / table}: a row for each sound, with columns {path} and {text}.")
        with (root / table).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if table.endswith(".tsv") else ","))
        if not rows or not {path, text} <= rows[0].keys():
            raise InputError(f"{root / table} must have rows, and columns {path!r} and {text!r}.")
        self._rows = [(root / clips / row[path], row[text]) for row in rows]
        self._rate, self._samples, self._bands = rate, round(seconds * rate), bands

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        path, text = self._rows[index]
        try:
            samples, rate = audio.read_wav(path.with_suffix(".wav"))
        except InputError as reason:
            raise BadRecord(str(reason)) from None
        if rate != self._rate or not text.strip():
            raise BadRecord(f"{path.name}: {rate} samples a second, not {self._rate}, or nothing said ({text!r})")
        hop = self._rate // 100
        samples = np.pad(samples[: self._samples], (0, max(0, self._samples - len(samples))))
        frames = self._samples // hop
        samples = np.pad(samples, (0, round(0.025 * self._rate) - hop))  # as many frames as hops
        return {"speech": normalised(audio.log_mel(samples, rate, bands=self._bands)[:frames]), "text": text}


def normalised(mels: np.ndarray) -> np.ndarray:
    """Log-mel frames to about [-1, 1]: nothing quieter than the loudest by 80 dB, then scaled, as Whisper has them."""
    decades = mels / np.log(10)
    return ((np.maximum(decades, decades.max() - 8) + 4) / 4).astype(np.float32)
