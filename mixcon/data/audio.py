"""Sound as numbers: wav files and log-mel spectrograms, in numpy.

Shapes: N samples, T frames, F bins of a spectrum, M mel bands.
"""

from __future__ import annotations

import os
import wave
from functools import cache

import numpy as np

from mixcon.errors import InputError


def read_wav(path: str | os.PathLike[str]) -> tuple[np.ndarray, int]:
    """Samples of a PCM wav file and their rate; several channels are averaged.

    Args:
        path: a file of 8, 16 or 32 bits a sample.

    Returns:
        float32 [N] in [-1, 1), and samples per second.

    Raises:
        InputError: no such file, not a PCM wav file, or one without samples.

    Example:
        >>> samples, rate = read_wav("7_theo_0.wav")  # doctest: +SKIP
    """
    try:
        with wave.open(os.fspath(path), "rb") as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            content = file.readframes(file.getnframes())
    except FileNotFoundError:
        raise InputError(f"there is no sound file {os.fspath(path)}.") from None
    except (wave.Error, EOFError) as reason:
        raise InputError(f"{os.fspath(path)} is not a PCM wav file ({reason}); convert it to 16 bits.") from None
    if width not in (1, 2, 4) or not content:
        raise InputError(f"{os.fspath(path)} has {8 * width} bits a sample and {len(content)} bytes: want 8, 16 or 32.")
    whole = len(content) // (width * channels) * width * channels  # a file that was cut off may end within a sample
    raw = np.frombuffer(content[:whole], {1: "<u1", 2: "<i2", 4: "<i4"}[width]).astype(np.float64)
    samples = (raw - 128) / 128 if width == 1 else raw / 2 ** (8 * width - 1)
    return samples.reshape(-1, channels).mean(axis=1).astype(np.float32), rate


def hertz_to_mel(hertz: np.ndarray | float) -> np.ndarray:
    """Pitch as it is heard: `2595 log10(1 + f/700)`.

    Example:
        >>> round(float(hertz_to_mel(1000.0)))
        1000
    """
    return 2595 * np.log10(1 + np.asarray(hertz, np.float64) / 700)


@cache
def mel_filters(*, rate: int, fft: int, bands: int, low: float = 0.0, high: float | None = None) -> np.ndarray:
    """Triangles [M, F] over the bins of a spectrum, evenly spaced and half overlapping on the mel scale.

    Band m rises from 0 at corner m to 1 at corner m+1 and falls to 0 at corner m+2, linearly in hertz, where the M+2
    corners lie evenly between `low` and `high` in mel.

    Args:
        rate: samples per second. fft: length of the transform; F = fft // 2 + 1.
        bands: M. low, high: in hertz; `high` is half the rate by default.

    Returns:
        float64 [M, F], not to be written to.

    Raises:
        InputError: corners outside 0 .. rate/2 or in the wrong order, a band in which no bin lies.

    Example:
        >>> mel_filters(rate=8000, fft=256, bands=20).shape
        (20, 129)
    """
    high = rate / 2 if high is None else high
    if bands < 1 or fft < 2 or not 0 <= low < high <= rate / 2:
        raise InputError(f"want bands ≥ 1 and 0 ≤ low < high ≤ {rate / 2}; got bands={bands}, low={low}, high={high}.")
    mels = np.linspace(hertz_to_mel(low), hertz_to_mel(high), bands + 2)
    corners = 700 * (10 ** (mels / 2595) - 1)
    hertz_F = np.arange(fft // 2 + 1) * rate / fft
    start, top, end = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    weights = np.maximum(0, np.minimum((hertz_F - start) / (top - start), (end - hertz_F) / (end - top)))
    if empty := int((weights.sum(1) == 0).sum()):
        raise InputError(f"{empty} of {bands} mel bands hold no bin of a transform of {fft}: fewer bands, or more fft.")
    weights.flags.writeable = False
    return weights


def log_mel(
    samples: np.ndarray,
    rate: int,
    *,
    bands: int = 80,
    window: float = 0.025,
    hop: float = 0.010,
    frames: int | None = None,
    low: float = 0.0,
    high: float | None = None,
    floor: float = 1e-10,
) -> np.ndarray:
    """Logarithm of the power in mel bands, frame by frame.

    `X_tm = ln max(floor, Σ_f W_mf |FFT(h · x[s_t : s_t + L])_f|²)`, h a periodic Hann window of L samples.

    Args:
        samples: [N], zeros are appended to at least one window.
        rate: samples per second.
        bands: M. low, high: of the filters, see `mel_filters`.
        window: L / rate, in seconds. hop: from one frame to the next, in seconds.
        frames: exactly so many, spread evenly from the first sample to the last, instead of `hop`: a sound is then
            stretched to one length.
        floor: smallest power.

    Returns:
        float32 [T, M]; T = 1 + (N - L) // hop, or `frames`.

    Raises:
        InputError: not [N], samples that are not finite, a window or hop that is no sample long, no frames.

    Example:
        >>> log_mel(np.zeros(8000), 8000, bands=20, window=0.032, frames=32).shape
        (32, 20)
    """
    samples = np.asarray(samples, np.float64)
    length, step = round(window * rate), round(hop * rate)
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise InputError(f"samples must be [N] finite numbers; their shape is {samples.shape}.")
    if length < 2 or step < 1 or floor <= 0 or (frames is not None and frames < 1):
        raise InputError(f"window={window}, hop={hop}, frames={frames}, floor={floor} leave no frame at {rate} Hz.")
    samples = np.pad(samples, (0, max(0, length - len(samples))))
    last = len(samples) - length
    starts = np.arange(0, last + 1, step) if frames is None else np.rint(np.linspace(0, last, frames)).astype(int)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    fft = 1 << (length - 1).bit_length()  # the next power of two
    pieces_TL = samples[starts[:, None] + np.arange(length)]
    power_TF = np.abs(np.fft.rfft(pieces_TL * hann, n=fft)) ** 2
    filters_MF = mel_filters(rate=rate, fft=fft, bands=bands, low=low, high=high)
    return np.log(np.maximum(power_TF @ filters_MF.T, floor)).astype(np.float32)
