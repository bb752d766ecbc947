"""Writers of short audio files in the formats that speech sets come in."""

import numpy as np
import pytest

soundfile = pytest.importorskip("soundfile")


def tone(seconds, hz=220.0, rate=16_000, level=0.3):
    """A tone with a slow swell, so that no two chunks of it are alike."""
    time = np.arange(round(seconds * rate)) / rate
    return (level * (0.5 + 0.5 * np.sin(1.3 * time)) * np.sin(2 * np.pi * hz * time)).astype("f4")


def noise(count, seed=0, level=0.3):
    """Noise with little above half of the band, which any change of the rate must keep."""
    values = np.random.default_rng(seed).normal(size=count + 15)
    smooth = np.convolve(values, np.hanning(16) / 8.0, "valid")
    return np.clip(level * smooth, -0.9, 0.9).astype("f4")


def write(path, samples, rate=16_000, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)
    return path


def write_sphere(
    path, samples, rate=16_000, order="01", header=1024, padding=b"\0", coding="pcm", count=None
):
    """NIST SPHERE of 16 bits: the header as in TIMIT, `padding` up to its stated size."""
    fields = [
        "NIST_1A",
        f"{header:7d}",
        "database_id -s5 TIMIT",
        "utterance_id -s8 cjf0_sx1",
        "channel_count -i 1",
        f"sample_count -i {len(samples) if count is None else count}",
        f"sample_rate -i {rate}",
        "sample_n_bytes -i 2",
        f"sample_byte_format -s2 {order}",
        "sample_sig_bits -i 16",
        *([f"sample_coding -s{len(coding)} {coding}"] if coding else []),
        "end_head",
        "",
    ]
    head = "\n".join(fields).encode()
    values = np.round(samples * 32768).astype("<i2" if order == "01" else ">i2")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + padding * (header - len(head)) + values.tobytes())
    return path


def cut(path, share=0.5):
    """Cuts off the end of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: round(share * len(data))])
    return path
