"""Sources and sinks of every kind, whole and damaged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from momentnorm.tiles import File, TilesError, tiled

tifffile = pytest.importorskip("tifffile")

RGB = np.random.default_rng(0).integers(0, 256, size=(3, 70, 90), dtype=np.uint8)


def network():
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.Conv2d(4, 3, 3), nn.Sigmoid()
    ).eval()


@pytest.fixture(scope="module")
def wanted():
    with torch.no_grad():
        return network()(torch.from_numpy(RGB)[None] / 255)[0]


def run(source, out=None, **options):
    return tiled(network(), **{"tile": 32, **options})(source, out)


def assert_close(found, wanted):
    torch.testing.assert_close(torch.as_tensor(found), wanted, rtol=0, atol=1e-5)


TIFFS = {
    "one strip": {},
    "strips, deflated": {"compression": "zlib", "rowsperstrip": 16, "predictor": True},
    "tiles": {"tile": (32, 48)},
    "tiles, deflated": {"tile": (16, 32), "compression": "zlib"},
    "big-endian": {"tile": (32, 32), "byteorder": ">"},
    "planes": {"planarconfig": "separate", "tile": (32, 32)},
    "planes, one block": {"planarconfig": "separate"},
}


@pytest.mark.parametrize("name", TIFFS)
def test_tiff_source(tmp_path, wanted, name):
    options = dict(TIFFS[name])
    byteorder = options.pop("byteorder", None)
    separate = options.get("planarconfig") == "separate"
    data = RGB.astype(np.uint16) if byteorder else RGB
    tifffile.imwrite(
        tmp_path / "in.tif",
        data if separate else data.transpose(1, 2, 0),
        photometric="rgb",
        byteorder=byteorder,
        **options,
    )
    assert_close(run(File(tmp_path / "in.tif", scale=1 / 255))[0], wanted)


@pytest.mark.parametrize("tile", [32, 27])
def test_tiff_sink_is_a_tiled_bigtiff(tmp_path, wanted, tile):
    path = tmp_path / "out.tif"
    run(torch.from_numpy(RGB) / 255, File(path, dtype="uint8", scale=255), tile=tile)
    with tifffile.TiffFile(path) as file:
        assert file.is_bigtiff
        assert file.pages[0].is_tiled
        pixels = file.asarray()
    assert pixels.dtype == np.uint8
    difference = pixels.astype(float) - wanted.permute(1, 2, 0).numpy() * 255
    assert np.abs(difference).max() <= 0.51


def test_tiff_of_floats(tmp_path, wanted):
    assert run(torch.from_numpy(RGB) / 255, tmp_path / "out.tif") == tmp_path / "out.tif"
    assert_close(tifffile.imread(tmp_path / "out.tif").transpose(2, 0, 1), wanted)


def test_npy(tmp_path, wanted):
    np.save(tmp_path / "in.npy", (RGB / 255).astype(np.float32))
    run(tmp_path / "in.npy", str(tmp_path / "out.npy"))
    assert_close(np.load(tmp_path / "out.npy")[0], wanted)


def test_memory_map(tmp_path, wanted):
    source = np.memmap(tmp_path / "in", np.float32, "w+", shape=(1, 3, 70, 90))
    source[:] = RGB / 255
    sink = np.memmap(tmp_path / "out", np.float16, "w+", shape=(3, 68, 88))
    assert run(source, sink) is sink
    torch.testing.assert_close(torch.tensor(sink).float(), wanted, rtol=0, atol=1e-3)


def test_tensor_of_bytes(wanted):
    sink = torch.zeros(1, 3, 68, 88, dtype=torch.uint8)
    model = network().append(nn.Upsample(scale_factor=1)).eval()
    tiled(model, tile=32)(torch.from_numpy(RGB) / 255, sink)
    torch.testing.assert_close(sink[0].float(), wanted.round())


def test_zarr(tmp_path, wanted):
    zarr = pytest.importorskip("zarr")
    source = zarr.create_array(tmp_path / "in", shape=RGB.shape, chunks=(3, 32, 32), dtype="f4")
    source[:] = RGB / 255
    sink = zarr.create_array(tmp_path / "out", shape=wanted.shape, chunks=(3, 32, 32), dtype="f4")
    run(source, sink)
    assert_close(sink[:], wanted)


def test_hdf5(tmp_path, wanted):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "file.h5", "w") as file:
        file["in"] = (RGB / 255).astype(np.float32)
        sink = file.create_dataset("out", shape=tuple(wanted.shape), dtype="f4")
        run(file["in"], sink)
        assert_close(sink[:], wanted)


def _cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


DAMAGED = {
    "tiles cut off": ({"tile": (32, 32)}, 0.7, "in.tif is cut off: tile"),
    "block cut off": ({}, 0.9, "in.tif is cut off: it should have"),
    "strips cut off": ({"compression": "zlib", "rowsperstrip": 8}, 0.8, "in.tif is"),
    "no TIFF": ({}, 0.0, "in.tif is damaged or is no TIFF file"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_tiff(tmp_path, name):
    options, share, message = DAMAGED[name]
    tifffile.imwrite(tmp_path / "in.tif", RGB.transpose(1, 2, 0), photometric="rgb", **options)
    _cut(tmp_path / "in.tif", share)
    with pytest.raises(TilesError, match=message) as error:
        run(tmp_path / "in.tif")
    assert "\n" not in str(error.value)


def test_a_damaged_tile_of_a_compressed_tiff(tmp_path):
    path = tmp_path / "in.tif"
    options = {"photometric": "rgb", "tile": (32, 32), "compression": "zlib"}
    tifffile.imwrite(path, RGB.transpose(1, 2, 0), **options)
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[4]
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"damage" * 5)
    with pytest.raises(TilesError, match=r"cannot read \[\d+:\d+, \d+:\d+\] of the source"):
        run(path)


def test_damaged_npy(tmp_path):
    np.save(tmp_path / "in.npy", RGB)
    _cut(tmp_path / "in.npy", 0.5)
    with pytest.raises(TilesError, match=r"in\.npy is damaged or is no \.npy file"):
        run(tmp_path / "in.npy")


class Short:
    """A source that says it is larger than it is."""

    shape, dtype = (3, 70, 90), np.float32

    def __getitem__(self, key):
        return np.zeros((3, 60, 90), np.float32)[key]


BAD = {
    "missing": (lambda folder: ((folder / "no.npy"), None), r"there is no file .*no\.npy"),
    "existing": (lambda folder: (RGB, folder / "there.npy"), "exists: remove it or choose another"),
    "dimensions": (lambda folder: (RGB[0], None), r"\(C, \*S\) or \(N, C, \*S\)"),
    "empty": (lambda folder: (RGB[:, :0], None), "the source is empty"),
    "kind": (lambda folder: ([1, 2], None), "a tensor, an array or a path, not list"),
    "sink's shape": (lambda folder: (RGB, RGB), r"the output's is \(1, 3, 68, 88\)"),
    "volume": (lambda folder: (np.stack([RGB] * 2), folder / "o.tif"), r"one image \(1, C, H, W\)"),
    "short": (lambda folder: (Short(), None), r"cannot read|shorter than its shape"),
    "no folder": (lambda folder: (RGB, folder / "no" / "o.npy"), "cannot make .*No such file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_sources_and_sinks(tmp_path, name):
    (tmp_path / "there.npy").touch()
    make, message = BAD[name]
    with pytest.raises(TilesError, match=message) as error:
        run(*make(tmp_path))
    assert "\n" not in str(error.value)


def test_formats_that_cannot_be_read_in_parts(tmp_path):
    (tmp_path / "in.jpg").touch()
    with pytest.raises(TilesError, match=r"vips copy in\.jpg in\.tif\[tile,bigtiff\]"):
        run(tmp_path / "in.jpg")
