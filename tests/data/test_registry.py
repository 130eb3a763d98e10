"""Datasets by name: what opens, and one line for what does not."""

import jax
import pytest
from published_dsprites import members, write_npz

from vaejax import data
from vaejax.data import DataError, Masked, Renderable, SCMSource


@pytest.mark.parametrize("image_size", [64, 32])
@pytest.mark.parametrize("name", data.REDRAWN)
def test_every_dataset_opens_redrawn(name, image_size):
    source = data.source(name, image_size)
    assert isinstance(source, Masked)
    assert (source.name, source.origin) == (name, "redrawn")
    assert source.image_shape[:2] == (image_size, image_size)
    images, factors = jax.eval_shape(lambda key: source.batch(key, 3), jax.random.key(0))
    assert images.shape == (3, *source.image_shape)
    assert factors.shape == (3, len(source.factors))
    masks = jax.eval_shape(jax.vmap(source.masks), factors)
    assert {mask.shape for mask in masks.values()} == {(3, image_size, image_size)}


def test_every_dataset_says_how_to_get_its_images():
    for name in data.names():
        assert "source(" in data.how_to_get(name)
        with pytest.raises(DataError, match=r"no genuine .* found; ") as error:
            data.find(name, data.root_directory() / "no such directory")
        assert data.how_to_get(name) in str(error.value)


def test_faces_have_correlated_attributes_and_no_others_do():
    assert [name for name in data.REDRAWN if data.source(name).correlated] == ["celeba"]
    assert not data.source("celeba@independent").correlated


@pytest.mark.parametrize("world", ["independent", "chain", "fork", "collider"])
def test_every_dataset_has_every_world(world):
    for name in data.REDRAWN:
        source = data.source(f"{name}@{world}", 32)
        assert isinstance(source, SCMSource)
        assert isinstance(source, Masked)
        assert source.name == f"{name}@{world}"
        assert source.correlated == (world != "independent")


def test_published_images_drive_worlds_too(tmp_path):
    path = write_npz(tmp_path / "any.npz", members())
    source = data.source("dsprites@chain", root=path)
    assert (source.name, source.origin) == ("dsprites@chain", "genuine")
    assert isinstance(source, Renderable)
    assert not isinstance(source, Masked)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("dsprits", {}, "did you mean 'dsprites'?"),
        ("dsprites@chian", {}, "unknown world 'chian': did you mean 'chain'?"),
        ("dsprites@", {}, "unknown world ''"),
        ("dsprites@attributes", {}, "attributes"),
        ("mpi3d_real", {}, "mpi3d_real cannot be redrawn"),
        ("smallnorb", {"split": "train"}, "only the published images have a split 'train'"),
        ("celeba", {"split": "valid", "root": "."}, "did you mean 'validation'?"),
        ("shapes3d", {"split": "train", "root": "."}, "unknown split of shapes3d 'train'"),
        ("shapes3d", {"image_size": 28}, "image_size is 28, but must be 64 or 32"),
    ],
)
def test_what_is_wrong_gets_one_line(name, options, said):
    with pytest.raises(DataError) as error:
        data.source(name, **options)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
