"""Four small representations without a random number in them, and their scores by the references.

`reference.json` has the figures that the metrics must give on them. They were made by running the
functions of disentanglement-lib 1.5 on these arrays, with the versions that the file names; those
of InfoMEC and UDR, whose code does not install, by writing out the formulas of latent_quantization
and of disentanglement_lib's repository independently.
"""

import json
from pathlib import Path

import numpy as np

NAMES = ("aligned", "dead", "rotated", "bent")
REFERENCE = json.loads((Path(__file__).parent / "reference.json").read_text())
TRAIN, TEST = 600, 300
SIZES = (3, 4, 5, 6)


def weyl(prime, times):
    """Numbers in [0, 1) that fill it evenly, and independently of those of another prime."""
    return np.mod(times * np.sqrt(float(prime)), 1.0)


def world(name):
    """Latents and factors to train on, and `(latents, factors)` to test on."""
    times = np.arange(1, 1 + TRAIN + TEST)
    primes = (2, 3, 5, 7)
    factors = np.stack(
        [np.floor(weyl(p, times) * size) for p, size in zip(primes, SIZES, strict=True)], axis=1
    ).astype(int)
    noise = np.stack([weyl(p, times) - 0.5 for p in (11, 13, 17, 19, 23, 29)], axis=1)
    latents = _latents(name, factors.astype(float), noise)
    held_out = latents[TRAIN:], factors[TRAIN:]
    return latents[:TRAIN], factors[:TRAIN], held_out


def _latents(name, factors, noise):
    a, b, c, d = factors.T
    e = noise.T
    if name == "aligned":  # one latent for each factor, one of noise
        columns = [a + 0.4 * e[0], 0.7 - 2 * b + e[1], 0.5 * c + 0.4 * e[2], d + 2 * e[3], e[4]]
    elif name == "dead":  # two latents never vary, one stands for two factors
        ones = np.ones_like(a)
        columns = [a + 0.8 * e[0], 3 * ones, b + 0.7 * c + e[1], -ones, d + 0.5 * e[2], e[3]]
    elif name == "rotated":  # every latent has a part of every factor
        pairs = zip(factors.T, e[:4], strict=True)
        centred = np.stack([(x + 0.5 * n) / (x.max() + 1) for x, n in pairs])
        mix = np.array([[1, 1, 1, 1], [1, -1, 1, -0.5], [1, 1, -1, -1], [0.3, -1, -1, 1]]) / 2
        columns = list(mix @ centred)
    else:  # a nonlinear code, a redundant one, and a factor shared by two latents
        parts = np.where(d < 3, d, 0), np.where(d < 3, 0, d)
        columns = [(a - 0.7) ** 3 + 0.3 * e[0], a + 0.2 * e[1], (b - 1.2) ** 2 + 0.3 * e[2]]
        columns += [parts[0] + 0.5 * e[3], parts[1] + 0.5 * e[4], b * c + e[5]]
    return np.stack(columns, axis=1)
