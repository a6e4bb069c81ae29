"""Decoding a user's pictures: every kind of number, size and format, or the reason why not."""

import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import png_that_claims
from PIL import Image, ImageOps

from cifar_resnet.data import Files
from cifar_resnet.pictures import decode, decode_all


def png_of(levels: np.ndarray, colour_type: int) -> bytes:
    """A PNG of 16 bits, (height, width, channels), written by its specification."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff_of(levels: np.ndarray, bits: int | None = None, white_is_zero: bool = False) -> bytes:
    """A grey TIFF of these numbers, written by its specification. bits: of each, where they are packed otherwise."""
    height, width = levels.shape
    data = levels.tobytes()
    if bits == 12:  # two numbers in three bytes
        first, second = levels.reshape(-1, 2).astype(int).T
        data = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()
    kind = {"u": 1, "i": 2, "f": 3}[levels.dtype.kind]
    tags = {
        256: width, 257: height, 258: bits or levels.dtype.itemsize * 8, 259: 1, 262: 0 if white_is_zero else 1,
        273: 8, 277: 1, 278: height, 279: len(data), 339: kind,
    }  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + b"\0" * 4


def grey(path: Path) -> np.ndarray:
    found, _ = decode(path, 32)
    assert (found[..., 0] == found[..., 1]).all()
    assert (found[..., 0] == found[..., 2]).all()
    return found[..., 0].astype(int)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "I;16"])
def test_any_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / f"picture.{'tiff' if mode == 'CMYK' else 'png'}"
    if mode == "I;16":
        Image.fromarray(np.full((32, 32), 40_000, dtype=np.uint16)).save(path)
        expected = [156, 156, 156]  # 40,000 / 257
    else:
        Image.new("RGB", (32, 32), (204, 204, 204)).convert(mode).save(path)
        expected = [255] * 3 if mode == "1" else [204, 204, 204]
    found, resized = decode(path, 32)
    assert found.shape == (32, 32, 3)
    assert found.dtype == np.uint8
    assert not resized
    if mode == "1":  # dithered
        assert set(np.unique(found)) <= {0, 255}
    else:
        assert abs(found.astype(int) - expected).max() <= 1


def test_transparent_pixels_are_white(tmp_path):
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (decode(tmp_path / "clear.png", 32)[0] == 255).all()


def test_pictures_are_turned_as_their_camera_noted(tmp_path):
    image = Image.new("RGB", (32, 32), "black")
    image.paste("white", (0, 0, 32, 8))  # the sensor's top
    exif = Image.Exif()
    exif[0x0112] = 6  # which the camera held on the right
    image.save(tmp_path / "photo.png", exif=exif)
    found, _ = decode(tmp_path / "photo.png", 32)
    assert found[:, -8:].min() == 255
    assert found[:, :-8].max() == 0


def test_other_sizes_are_resized_and_said_to_be(tmp_path):
    Image.new("RGB", (900, 500), (10, 20, 30)).save(tmp_path / "large.jpg")
    found, resized = decode(tmp_path / "large.jpg", 32)
    assert resized
    assert found.shape == (32, 32, 3)
    assert abs(found.astype(int) - [10, 20, 30]).max() <= 2


def test_decompression_bombs_are_refused_before_they_unpack(tmp_path):
    for name, width, height in (("bomb.png", 60_000, 60_000), ("large.png", 10_001, 10_000)):
        (tmp_path / name).write_bytes(png_that_claims(width, height))
        with pytest.raises(ValueError, match=rf"not a readable image: .*{name} .*pixels"):
            decode(tmp_path / name, 32)


def test_postscript_is_not_handed_to_another_program(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "page.eps")
    with pytest.raises(ValueError, match="not a readable image"):
        decode(tmp_path / "page.eps", 32)


@pytest.fixture
def levels() -> np.ndarray:
    """From 0 to 1, both included: (32, 32)."""
    return np.linspace(0, 1, 1024).reshape(32, 32)


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_are_scaled_in_every_mode_of_png(tmp_path, levels, colour_type, channels):
    numbers = np.repeat((levels * 65535).round()[..., None], channels, axis=2)
    if channels in (2, 4):
        numbers[..., -1] = 65535  # opaque
    (tmp_path / "deep.png").write_bytes(png_of(numbers, colour_type))
    assert abs(grey(tmp_path / "deep.png") - levels * 255).max() <= 1


@pytest.mark.parametrize(
    ("dtype", "white", "bits"), [("<f4", 1.0, None), ("<u2", 65535, None), ("<u2", 4095, 12), ("u1", 255, None)]
)
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_tiffs_are_scaled_by_what_stands_for_white(tmp_path, levels, dtype, white, bits, white_is_zero):
    if bits == 12 and white_is_zero:
        pytest.skip("which Pillow does not read")
    numbers = (1 - levels if white_is_zero else levels) * white
    numbers = numbers.astype(dtype) if dtype == "<f4" else numbers.round().astype(dtype)
    (tmp_path / "grey.tiff").write_bytes(tiff_of(numbers, bits, white_is_zero))
    assert abs(grey(tmp_path / "grey.tiff") - levels * 255).max() <= 1


@pytest.mark.parametrize("most", [255, 1023, 65535])
def test_pgm_is_scaled_by_its_own_maximum(tmp_path, levels, most):
    numbers = (levels * most).round().astype(">u2" if most > 255 else "u1")
    (tmp_path / "grey.pgm").write_bytes(b"P5 32 32 %d\n" % most + numbers.tobytes())
    assert abs(grey(tmp_path / "grey.pgm") - levels * 255).max() <= 1


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        (np.full((32, 32), 200, "<i4"), "numbers with a sign"),
        (np.full((32, 32), 200, "<i2"), "numbers with a sign"),
        (np.full((32, 32), 100, "i1"), "numbers with a sign"),
        (np.full((32, 32), 200, "<u4"), "whole numbers of 32 bits, of which none stands for white"),
        (np.full((32, 32), 200, "<f4"), "numbers from 200 to 200, where 0 is black and 1 is white; scale them"),
        (np.linspace(-1, 1, 1024, dtype="<f4").reshape(32, 32), "numbers from -1 to 1, where 0 is black"),
        (np.full((32, 32), np.nan, "<f4"), "numbers from nan to nan"),
    ],
)
def test_numbers_of_which_nothing_says_what_is_white_are_refused_with_the_reason(tmp_path, numbers, reason):
    (tmp_path / "grey.tiff").write_bytes(tiff_of(numbers))
    with pytest.raises(ValueError, match=rf"not a readable image: .*grey\.tiff \({reason}"):
        decode(tmp_path / "grey.tiff", 32)


def test_a_tiff_that_pillow_does_not_read_says_so(tmp_path):
    (tmp_path / "double.tiff").write_bytes(tiff_of(np.zeros((32, 32), "<f8")))
    with pytest.raises(ValueError, match=r"a TIFF that is damaged, or of numbers that Pillow does not read"):
        decode(tmp_path / "double.tiff", 32)


def test_how_large_a_picture_may_be_is_a_setting(tmp_path):
    (tmp_path / "large.png").write_bytes(png_that_claims(1001, 1000))
    with pytest.raises(ValueError, match=r"1001 x 1000 pixels, more than max_megapixels=1\)"):
        decode(tmp_path / "large.png", 32, max_megapixels=1)
    Image.new("L", (1001, 1000), 7).save(tmp_path / "large.png")
    assert (decode(tmp_path / "large.png", 32, max_megapixels=2)[0] == 7).all()


def test_a_picture_beyond_pils_own_limit_is_read_where_the_setting_allows_it(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # PIL refuses more than twice as many
    Image.new("L", (100, 100), 7).save(tmp_path / "large.png")
    assert (decode(tmp_path / "large.png", 32, max_megapixels=1)[0] == 7).all()


def test_a_large_jpeg_is_not_decoded_whole(tmp_path, monkeypatch):
    sizes = []
    exif_transpose = ImageOps.exif_transpose
    monkeypatch.setattr(ImageOps, "exif_transpose", lambda image: sizes.append(image.size) or exif_transpose(image))
    for mode in ("RGB", "L", "CMYK"):
        Image.new(mode, (1600, 1200)).save(tmp_path / "photo.jpg")
        decode(tmp_path / "photo.jpg", 32)
    assert sizes == [(200, 150)] * 3  # an eighth, which is the least that JPEG has


def test_pictures_are_decoded_in_threads_and_in_their_order(tmp_path, monkeypatch):
    paths = [tmp_path / f"{level}.png" for level in range(8)]
    for level, path in enumerate(paths):
        Image.new("L", (32, 32), level).save(path)
    together = threading.Barrier(2, timeout=5)  # each waits for another that is being decoded at the same time
    opened = Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **named: together.wait() is None or opened(*args, **named))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    pixels, num_resized = decode_all(paths, 32)
    assert [each[0, 0, 0] for each in pixels] == list(range(8))
    assert num_resized == 0


def test_all_that_cannot_be_read_is_named_at_once(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for number, path in enumerate(paths):
        path.write_bytes(b"no picture") if number % 2 else Image.new("L", (8, 8)).save(path)
    (tmp_path / "dead.png").symlink_to("nowhere")
    with pytest.raises(
        ValueError, match=r"^7 of 13 images are not readable\. Got in \S+: 1\.png, 3\.png, .*, dead\.png; m"
    ):
        decode_all([*paths, tmp_path / "dead.png"], 8)
    many = [tmp_path / "many" / f"{number}.heic" for number in range(30)]
    (tmp_path / "many").mkdir()
    for path in many:
        path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"30 of 30 .* (\d\.heic, ){7}\d\.heic and 22 more; mend .* of no format"):
        decode_all(many, 8)


def test_decoding_shows_a_bar_in_a_terminal_and_nothing_elsewhere(tmp_path, monkeypatch, capsys):
    for half in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / half / name).mkdir(parents=True)
            Image.new("L", (32, 32)).save(tmp_path / half / name / "1.png")
    Files(str(tmp_path / "train")).prepare_data()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # by which rich takes anything for a terminal
    Files(str(tmp_path / "test")).prepare_data()
    err = capsys.readouterr().err
    assert "decoding pictures" in err
    assert "100%" in err


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pixels = np.full((32, 48, 3), (200, 60, 20), np.uint8)
    pillow_heif.from_bytes("RGB", (48, 32), pixels.tobytes()).save(tmp_path / "photo.heic")
    found, was_resized = decode(tmp_path / "photo.heic", 32)
    assert was_resized
    assert abs(found.astype(int) - (200, 60, 20)).max() < 12  # lossy


def test_where_pillow_heif_is_not_installed_heic_says_what_reads_it(tmp_path, monkeypatch):
    monkeypatch.setattr("cifar_resnet.pictures.find_spec", lambda name: None)
    (tmp_path / "photo.jpg").write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0mif1heic")  # whatever its name says
    with pytest.raises(ValueError, match=r"HEIC is read with pillow-heif: pip install -e '\.\[heic\]', in the clone"):
        decode(tmp_path / "photo.jpg", 32)
