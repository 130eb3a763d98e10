"""`python -m experiments.data`, and which datasets a sweep finds when genuine images are wanted."""

import io
import sys
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from experiments import data as command
from experiments import presets, runs
from experiments.cli import UsageError
from vaejax import data
from vaejax.data import ArraySource
from vaejax.data.genuine.dsprites import PUBLISHED


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        command.main(list(map(str, arguments)))
    return stop.value.code, *capsys.readouterr()


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A directory with a tiny dSprites of 3 x 2 x 1 x 1 x 1 images, and nothing else."""
    classes = np.zeros((6, 6), np.int64)
    classes[:, 1:3] = np.stack(np.unravel_index(np.arange(6), (3, 2)), axis=1)
    images = np.arange(6)[:, None, None] > np.zeros((64, 64))
    with zipfile.ZipFile(tmp_path / f"{PUBLISHED}.npz", "w") as archive:
        for name, array in (("imgs", images.astype(np.uint8)), ("latents_classes", classes)):
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            archive.writestr(f"{name}.npy", content.getvalue())
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return tmp_path


def test_list_names_what_is_there_and_how_to_get_the_rest(root, capsys):
    status, out, _ = run(capsys, "list")
    assert status == 0
    assert str(root / f"{PUBLISHED}.npz") in out.replace("\n", "")
    assert out.count("published: not there; get") == 6
    assert "3dshapes.h5" in out
    assert "independent, chain, fork, collider" in out


def test_prepare_reads_what_is_there(root, capsys):
    status, out, _ = run(capsys, "prepare", "dsprites")
    assert status == 0
    assert "reading dsprites: 6 of 6" in out
    assert "dsprites: 6 images, ready in" in out


def test_prepare_says_what_is_missing(root, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    for name, said in (("shapes3d", "pip install 'vaejax[prepare]'"), ("mpi3d", "mpi3d_toy.npz")):
        status, _, err = run(capsys, "prepare", name)
        assert status == 2
        assert said in err
        assert err.count("\n") == 1


def test_show_writes_samples_traversals_and_masks(tmp_path, capsys):
    status, out, _ = run(
        capsys, "show", "dsprites@chain", "--size", "32", "--out", tmp_path / "new"
    )
    assert status == 0
    for kind in ("samples", "factors", "masks"):
        path = tmp_path / "new" / f"dsprites_in_chain_{kind}.png"
        assert str(path) in out.replace("\n", "")
        with Image.open(path) as picture:
            assert picture.size[0] > 500


def test_a_traversal_changes_one_factor_and_ends_with_its_classes():
    source = data.source("dsprites", 32)
    rows = command.traversals(source)
    assert list(rows) == ["shape", "scale", "orientation", "x", "y"]
    assert (rows["shape"][3:] == 1).all()  # three shapes, then nothing
    _, (example,) = source.batch(jax.random.key(command._EXAMPLE), 1)
    for k, name, column, value in ((1, "scale", 3, 3), (3, "x", 0, 0), (3, "x", 9, 31)):
        drawn = source.render(example.at[k].set(value))
        np.testing.assert_array_equal(rows[name][column], drawn)


def test_what_cannot_be_drawn_by_factor_is_shown_by_example(tmp_path):
    labels = np.array([[0, 1], [1, 0], [1, 1]])
    images = np.broadcast_to(labels[:, :1, None, None] / 2, (3, 8, 8, 1))
    written = command.show(ArraySource.of(images, labels, "mine"), tmp_path)
    assert [path.name for path in written] == ["mine_samples.png", "mine_factors.png"]


def test_the_gallery_has_every_redrawn_dataset(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        command, "traversals", lambda source, columns: seen.append(source.name) or {"a": BLACK}
    )
    command.gallery(tmp_path, 32)
    assert sorted(seen) == sorted(data.REDRAWN)
    assert (tmp_path / "gallery.png").read_bytes().startswith(b"\x89PNG")


BLACK = np.zeros((6, 32, 32, 1))


def test_a_genuine_sweep_takes_what_is_there_and_names_the_rest(root):
    console = Console(file=io.StringIO(), width=1000)
    wanted = presets.Preset(datasets=("shapes3d", "dsprites", "dsprites@chain"), source="genuine")
    assert runs.present(wanted, console) == ("dsprites", "dsprites@chain")
    (line,) = console.file.getvalue().splitlines()
    assert line.startswith("shapes3d is left out: ")
    assert "3dshapes.h5" in line
    assert {run.source().origin for run in runs.grid(wanted, ("dsprites",))} == {"genuine"}
    with pytest.raises(UsageError, match="no genuine images of celeba, mpi3d: see"):
        runs.present(presets.Preset(datasets=("celeba", "mpi3d"), source="genuine"), console)
    redrawn = presets.Preset()
    assert runs.present(redrawn, console) == presets.DATASETS
