"""Wav files and log-mel spectrograms against independent loops; spoken digits; tables of speech and text."""

import math
import os
import wave

import numpy as np
import pytest

from mixcon.data import audio, spoken_digits
from mixcon.data.pipeline import eval_batches
from mixcon.data.speech import SpeechText
from mixcon.errors import InputError


def write(path, samples, *, rate=8000, width=2, channels=1):
    kinds = {1: ("u1", 128, 127), 2: ("<i2", 0, 32767), 4: ("<i4", 0, 2**31 - 1)}
    kind, centre, top = kinds[width]
    with wave.open(os.fspath(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(np.rint(np.asarray(samples) * top + centre).astype(kind).tobytes())
    return path


def tone(hertz, *, seconds=0.4, rate=8000):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_wav_file_is_read_as_it_was_written(tmp_path, width):
    stereo = np.stack([tone(440), np.zeros(3200)], 1)
    samples, rate = audio.read_wav(write(tmp_path / "a.wav", stereo.ravel(), width=width, channels=2))
    assert (rate, samples.dtype, len(samples)) == (8000, np.float32, 3200)
    np.testing.assert_allclose(samples, tone(440) / 2, atol=1.2 / 2 ** (8 * width - 1) + 1e-6)


def loop_log_mel(x, rate, *, bands, length, starts, floor):
    """The definition, number by number: windows, a discrete Fourier transform by sums, triangles."""
    fft = 1
    while fft < length:
        fft *= 2

    def mel(f):
        return 2595 * math.log10(1 + f / 700)

    corners = [700 * (10 ** (mel(rate / 2) * k / (bands + 1) / 2595) - 1) for k in range(bands + 2)]
    rows = []
    for start in starts:
        piece = [x[start + n] * (0.5 - 0.5 * math.cos(2 * math.pi * n / length)) for n in range(length)]
        power = []
        for f in range(fft // 2 + 1):
            real = sum(v * math.cos(2 * math.pi * f * n / fft) for n, v in enumerate(piece))
            imaginary = sum(v * math.sin(2 * math.pi * f * n / fft) for n, v in enumerate(piece))
            power.append(real**2 + imaginary**2)
        row = []
        for m in range(bands):
            low, top, high = corners[m : m + 3]
            total = 0.0
            for f, p in enumerate(power):
                hertz = f * rate / fft
                if low < hertz <= top:
                    total += p * (hertz - low) / (top - low)
                elif top < hertz < high:
                    total += p * (high - hertz) / (high - top)
            row.append(math.log(max(floor, total)))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(("options", "starts"), [({"hop": 0.01}, [0, 80, 160]), ({"frames": 2}, [0, 180])])
def test_log_mel_is_its_definition(options, starts):
    x = np.random.default_rng(0).normal(size=300)
    got = audio.log_mel(x, 8000, bands=6, window=0.015, floor=1e-3, **options)
    want = loop_log_mel(x, 8000, bands=6, length=120, starts=starts, floor=1e-3)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_a_tone_is_loudest_in_its_band_and_a_short_sound_is_one_frame():
    loud = [audio.log_mel(tone(hertz), 8000, bands=20).mean(0).argmax() for hertz in (200, 800, 3200)]
    assert loud == sorted(set(loud))
    filters = audio.mel_filters(rate=8000, fft=256, bands=20)
    assert filters[loud[1]].argmax() == pytest.approx(800 / 8000 * 256, abs=2)
    assert audio.log_mel(np.ones(3), 8000, bands=4).shape == (1, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: audio.log_mel(np.zeros((2, 2)), 8000), r"samples must be \[N\]"),
        (lambda: audio.log_mel(np.array([np.nan]), 8000), "finite"),
        (lambda: audio.log_mel(np.zeros(9), 8000, frames=0), "no frame"),
        (lambda: audio.log_mel(np.zeros(9), 8000, bands=4, high=5000), "low < high"),
        (lambda: audio.mel_filters(rate=8000, fft=64, bands=60), "hold no bin"),
        (lambda: audio.read_wav("nowhere.wav"), "no sound file"),
        (lambda: spoken_digits.spoken_digits("valid"), "want side"),
    ],
)
def test_bad_input_is_refused_in_words(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_file_that_is_no_sound_is_refused(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF0000WAVE")
    with pytest.raises(InputError, match="not a PCM wav file"):
        audio.read_wav(tmp_path / "a.wav")


@pytest.fixture
def recordings(tmp_path, monkeypatch):
    """A set of the same form: each digit a tone, each speaker louder than the last."""
    (tmp_path / "fsdd" / "recordings").mkdir(parents=True)
    for digit in range(10):
        for loudness, speaker in enumerate(("ann", "bob", "cem")):
            for take in range(2):
                sound = tone(200 + 150 * digit, seconds=0.1 + 0.05 * take) * (loudness + 1) / 3
                write(tmp_path / "fsdd" / "recordings" / f"{digit}_{speaker}_{take}.wav", sound)
    monkeypatch.setenv("MIXCON_DATA", str(tmp_path))
    spoken_digits.recordings.cache_clear()
    yield
    spoken_digits.recordings.cache_clear()


@pytest.mark.usefixtures("recordings")
def test_spoken_digits_are_paired_with_images_of_the_same_digit():
    train, test, images = (
        spoken_digits.spoken_digits(side, view="pix", keep=20, seed=3) for side in ("train", "test", "images")
    )
    assert (len(train), len(test), len(images)) == (20, 40, 1000)
    assert train.columns["speech"].shape == (20, 32, 20)
    assert np.bincount(train.columns["label"]).tolist() == [2] * 10
    kept = images.columns["image"]
    np.testing.assert_allclose([kept.mean(), kept.std(0).max()], [0, 1], atol=1e-4)
    known = {row.tobytes() for row in kept}
    assert not any(row.tobytes() in known for row in train.columns["image"]), "images of pairs are others"
    again = spoken_digits.spoken_digits("train", view="pix", keep=20, seed=3)
    np.testing.assert_array_equal(train.columns["image"], again.columns["image"])
    other = spoken_digits.spoken_digits("train", view="pix", keep=20, seed=4)
    assert not np.array_equal(train.columns["image"], other.columns["image"])


@pytest.mark.usefixtures("recordings")
def test_held_out_speakers_do_not_train():
    found = spoken_digits.recordings()
    train, test = spoken_digits.split(found, keep=None, held_out=1, rng=np.random.default_rng(0))
    assert (train.sum(), test.sum()) == (40, 20)
    assert not set(found.speaker[train]) & set(found.speaker[test])
    with pytest.raises(InputError, match="held_out=3"):
        spoken_digits.spoken_digits("train", view="pix", held_out=3)
    with pytest.raises(InputError, match="keep=100"):
        spoken_digits.spoken_digits("train", view="pix", keep=100)


def test_a_table_of_speech_and_text_skips_what_cannot_be_read(tmp_path):
    (tmp_path / "clips").mkdir()
    for name, rate in (("a", 16_000), ("b", 8_000)):
        write(tmp_path / "clips" / f"{name}.wav", tone(300, rate=rate), rate=rate)
    rows = ["path\tsentence", "a.mp3\thello", "b.wav\tother rate", "c.wav\tnot there"]
    (tmp_path / "train.tsv").write_text("\n".join(rows))
    source = SpeechText(str(tmp_path), seconds=0.5, bands=20)
    record = source[0]
    assert (record["speech"].shape, record["text"]) == ((50, 20), "hello")
    assert record["speech"].max() - record["speech"].min() <= 2
    (batch,) = eval_batches(source, batch_size=3, max_bad_share=1.0)
    assert batch["mask"].tolist() == [True, False, False]
    with pytest.raises(InputError, match="no table"):
        SpeechText(str(tmp_path), "dev.tsv")
    with pytest.raises(InputError, match="columns"):
        SpeechText(str(tmp_path), text="words")
