"""A tensorflow-datasets builder of MPI3D, which that library lacks; needs no TensorFlow.

`vaejax.data.source("mpi3d", genuine=True)` reads the published npz as it is. This is for those who
want MPI3D among their prepared datasets:

    python -m vaejax.data.genuine.mpi3d_builder mpi3d_toy.npz ~/tensorflow_datasets

Importing this module registers the builder, so that `tfds.builder("mpi3d/toy")` knows it.
"""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vaejax.data.errors import DataError
from vaejax.data.genuine import mpi3d

_CHUNK = 256


class Mpi3d(tfds.core.GeneratorBasedBuilder):
    """MPI3D: `image` and one `label_<factor>` for each factor, in the order of the factors.

    The npz is looked for in the directory of manual downloads.
    """

    name = mpi3d.NAME
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(
        tfds.core.BuilderConfig(name=variant, description=f"mpi3d_{variant}.npz")
        for variant in mpi3d.VARIANTS
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = mpi3d.HOW_TO_GET
    # Nothing is downloaded, and to look for checksums takes a package that is often missing.
    url_infos = None

    def _info(self) -> Any:
        labels = {
            label: tfds.features.ClassLabel(num_classes=factor.size)
            for label, factor in zip(mpi3d.LABELS, mpi3d.FACTORS, strict=True)
        }
        image = tfds.features.Image(shape=mpi3d.SHAPE, encoding_format="png")
        return tfds.core.DatasetInfo(
            builder=self,
            description="A robot arm holds an object: every combination of seven factors.",
            features=tfds.features.FeaturesDict({"image": image, **labels}),
            homepage="https://github.com/rr-learning/disentanglement_dataset",
            disable_shuffling=True,  # so that they are read back in the order they are kept in
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        npz = Path(dl_manager.manual_dir) / f"{mpi3d.NAME}_{self.builder_config.name}.npz"
        return {"train": self._generate_examples(npz)}

    def _generate_examples(self, npz: Path) -> Iterator[tuple[int, dict]]:
        from PIL import Image

        with mpi3d.opened_npz(npz) as (sizes, read):
            rows = math.prod(sizes)
            for start in range(0, rows, _CHUNK):
                count = min(_CHUNK, rows - start)
                images = np.frombuffer(read(count), np.uint8).reshape(count, *mpi3d.SHAPE)
                classes = np.stack(np.unravel_index(np.arange(start, start + count), sizes), axis=1)
                for row in range(count):
                    # Encoded here, for tensorflow-datasets encodes arrays with TensorFlow.
                    png = io.BytesIO()
                    Image.fromarray(images[row]).save(png, "PNG")
                    labels = dict(zip(mpi3d.LABELS, map(int, classes[row]), strict=True))
                    yield start + row, {"image": png.getvalue(), **labels}


def prepare(npz: Path, data_dir: Path) -> Path:
    """Prepares a published npz as ArrayRecord, unless that has been done.

    Args:
      npz: `mpi3d_<variant>.npz`.
      data_dir: Where tensorflow-datasets keeps prepared data.

    Returns:
      The version directory, `<data_dir>/mpi3d/<variant>/1.0.0`.

    Raises:
      DataError: The file has another name, or is missing or damaged.
    """
    variant = npz.stem.removeprefix(f"{mpi3d.NAME}_")
    if variant not in mpi3d.VARIANTS:
        names = ", ".join(f"{mpi3d.NAME}_{variant}.npz" for variant in mpi3d.VARIANTS)
        raise DataError(f"{npz}: must have one of the published names, {names}")
    with mpi3d.opened_npz(npz):
        pass
    builder = Mpi3d(config=variant, data_dir=os.fspath(data_dir), file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=os.fspath(npz.parent))
    )
    return Path(builder.data_dir)


if __name__ == "__main__":
    try:
        print(prepare(Path(sys.argv[1]), Path(sys.argv[2]).expanduser()))
    except (DataError, IndexError) as error:
        sys.exit(str(error) if isinstance(error, DataError) else __doc__)
