"""Typed presets of the sweep. Nothing here imports JAX, so `--help` is quick.

| preset | what for | time on 2 CPU cores |
|---|---|---|
| smoke | does everything work? | 3 minutes, nearly all of it compiling |
| demo | the default: small models that have learnt something | 8 minutes |
| quick | all datasets at the demo's size | five times the demo's runs |
| paper | the published setting: 64x64, reference network, 300,000 steps | an accelerator's job |
"""

from __future__ import annotations

import dataclasses

MODELS = ("vae", "beta_vae", "factor_vae", "beta_tc_vae", "dip_vae_ii", "vq_vae")
DATASETS = ("dsprites", "shapes3d", "mpi3d", "smallnorb", "celeba")
SOURCES = ("redrawn", "genuine")
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
# What can be measured, and the representations that disentanglement metrics can score.
DISENTANGLEMENT = (
    *("mig", "dci", "sap", "factor_vae_score", "beta_vae_score"),
    *("modularity_rm", "explicitness", "irs", "infomec"),
)
METRICS = (
    *DISENTANGLEMENT,
    *("latent_effects", "code_effects", "factor_effects", "mediation", "circuits"),
)
REPRESENTATIONS = ("means", "samples", "codes", "pooled")


@dataclasses.dataclass(frozen=True)
class Preset:
    """One resolved setting of the sweep; `config.json` holds exactly this.

    Attributes:
      datasets: Names for `vaejax.data.source`, such as `dsprites` or `dsprites@chain`.
      source: `"redrawn"` or `"genuine"` images.
      models: Names in `vaejax.zoo.ZOO`.
      seeds: One run per seed.
      image_size: Side of the images, 64 or 32.
      width: Multiplies the reference network's channels and units.
      latent_dim: Latents of the Gaussian family.
      discriminator_width: Units of each layer of FactorVAE's discriminator.
      codebook_size: Codes of the VQ-VAE.
      code_dim: Dimension of a code.
      batch_size: Examples per step.
      learning_rate: Adam's.
      steps: Steps of each run.
      chunk: Steps between two checkpoints.
      examples: Images that reconstruction, KL, information and the aggregate posterior are
        measured on.
      scored_examples: How many of them classifiers of the disentanglement metrics get, two thirds
        to train and one to test.
      votes: Sets that the FactorVAE and beta-VAE scores learn from; half as many are judged.
      ces_examples: Images that are intervened on; twice as many for circuits, of which half are
        held out.
      readout_steps: Steps of training the factor read-out.
      optimize: Whether XLA optimises what it compiles; off where compiling takes longest.
      precision: What products of float32 matrices are rounded to on accelerators that are faster
        with less; sums are float32. Left to themselves, TPUs take bfloat16.
      metrics: What is measured, of `METRICS`; reconstruction and KL are in any case.
    """

    datasets: tuple[str, ...] = DATASETS
    source: str = "redrawn"
    models: tuple[str, ...] = MODELS
    seeds: tuple[int, ...] = (0, 1, 2)
    image_size: int = 64
    width: float = 1.0
    latent_dim: int = 10
    discriminator_width: int = 1000
    codebook_size: int = 512
    code_dim: int = 64
    batch_size: int = 64
    learning_rate: float = 1e-4
    steps: int = 300_000
    chunk: int = 1_000
    examples: int = 15_000
    scored_examples: int = 15_000
    votes: int = 10_000
    ces_examples: int = 64
    readout_steps: int = 2_000
    optimize: bool = True
    precision: str = "float32"
    metrics: tuple[str, ...] = METRICS


# Locatello et al. (2019): the network, batch size, optimizer and length of training.
PAPER = Preset()

DEMO = Preset(
    datasets=("dsprites",),
    image_size=32,
    width=0.5,
    discriminator_width=256,
    codebook_size=128,
    code_dim=16,
    batch_size=32,
    learning_rate=1e-3,
    steps=1_500,
    chunk=250,
    examples=10_000,
    scored_examples=3_000,
    votes=1_000,
    ces_examples=32,
)

PRESETS = {
    "smoke": dataclasses.replace(
        DEMO,
        width=0.125,
        discriminator_width=16,
        codebook_size=16,
        code_dim=2,
        batch_size=8,
        steps=20,
        chunk=10,
        examples=150,
        scored_examples=150,
        votes=20,
        ces_examples=8,
        readout_steps=20,
        optimize=False,
    ),
    "demo": DEMO,
    "quick": dataclasses.replace(DEMO, datasets=DATASETS),
    "paper": PAPER,
}
