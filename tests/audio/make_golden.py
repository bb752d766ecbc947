"""Writes golden_librosa.npz: what librosa makes of two synthetic signals.

    pip install librosa==0.11.0 numpy==2.4.6 && python tests/audio/make_golden.py

Made with Python 3.11, librosa 0.11.0 and numpy 2.4.6 on x86_64. The signals are not stored: they
are computed from the formulas below. ``compute`` also serves the test against librosa itself.
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("golden_librosa.npz")
STORED_FRAMES = slice(None, None, 3)  # of the spectrograms, to keep the file small


def signals(rate_hz, num_samples):
    """A chirp with noise, and a noise that ends in silence, ``[2, N]`` float32."""
    time = np.arange(num_samples) / rate_hz
    noise = np.random.RandomState(0).standard_normal((2, num_samples))
    chirp = 0.5 * np.sin(2 * np.pi * (100 * time + 2000 * time**2)) + 0.01 * noise[0]
    return np.stack([chirp, 0.1 * noise[1] * (time < 0.5 * time[-1])]).astype(np.float32)


def compute():
    """Mel basis, log-mel [2, V, 80] at 22.05 kHz and log-linear [2, V, 201] at 16 kHz."""
    import librosa

    basis = librosa.filters.mel(sr=22050, n_fft=1024, n_mels=80, fmin=0, fmax=8000)
    padded = np.pad(signals(22050, 17640), ((0, 0), (384, 384)), mode="reflect")
    spectrum = librosa.stft(padded, n_fft=1024, hop_length=256, win_length=1024, center=False)
    mel = basis @ np.sqrt(np.abs(spectrum) ** 2 + 1e-9)
    linear = librosa.stft(
        signals(16000, 12800), n_fft=400, hop_length=165, win_length=320, pad_mode="reflect"
    )
    return {
        "mel_basis": basis.T,
        "log_mel": np.log(np.maximum(mel, 1e-5)).swapaxes(1, 2),
        "log_linear": np.log(np.maximum(np.abs(linear), 1e-5)).swapaxes(1, 2),
    }


def stored(arrays):
    """The part of ``compute`` that the file holds; the basis only where it is not zero."""
    rows, columns = np.nonzero(arrays["mel_basis"])
    return {
        "basis_rows": rows.astype(np.int16),
        "basis_columns": columns.astype(np.int16),
        "basis_values": arrays["mel_basis"][rows, columns],
        "log_mel": arrays["log_mel"][:, STORED_FRAMES].astype(np.float32),
        "log_linear": arrays["log_linear"][:, STORED_FRAMES].astype(np.float32),
    }


if __name__ == "__main__":
    np.savez_compressed(FILE, **stored(compute()))
    print(FILE.stat().st_size, "bytes")
