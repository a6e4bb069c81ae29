"""A user's pictures, decoded into the pixels that a network sees.

Of the formats that Pillow reads the usual ones (`FORMATS`), and HEIC where pillow-heif is installed. It takes
no torch to import this: what is wrong with a file is said at once.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cifar_resnet.errors import one_line, refuse_if
from cifar_resnet.folders import named
from cifar_resnet.terminal import bar

# not those that PIL hands to another program, such as EPS to Ghostscript
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
TIFFS = (b"II*\0", b"MM\0*")  # how they begin
MAX_MEGAPIXELS = 100  # of one picture; what claims more is taken for a decompression bomb
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF 6.0
WHITE_IS_ZERO, SIGNED = 0, 2  # values of the last two


class Unreadable(ValueError):
    """A picture that cannot be read. reason: why."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"not a readable image: {path} ({reason}); mend it or take it away")
        self.reason = reason


def decode(path: Path, image_size: int, max_megapixels: int = MAX_MEGAPIXELS) -> tuple[np.ndarray, bool]:
    """One picture as (image_size, image_size, 3) uint8, and whether it had another size and was squeezed.

    Turned upright as its camera noted, transparent parts on white, other kinds of numbers scaled to 8 bits by what
    stands for white in them; of an animation the first frame. `Unreadable` where it might be misread as well.
    """
    try:
        with opened(path, max_megapixels) as image:
            width, height = image.size
            refuse_if(
                width * height > max_megapixels * 1e6,
                f"{width} x {height} pixels, more than max_megapixels={max_megapixels}",
            )
            image.draft("RGB", (2 * image_size, 2 * image_size))  # a large JPEG need not be decoded whole
            scale = white_and_black(image)  # first, for the upright copy has no tags
            image = as_rgb(ImageOps.exif_transpose(image), scale)
    except Exception as error:  # a damaged file may raise anything in one of the decoders
        is_dead = path.is_symlink() and not path.exists()
        raise Unreadable(path, "a link that leads nowhere" if is_dead else one_line(error)) from error
    is_other_size = (width, height) != (image_size, image_size)
    if is_other_size:
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR, reducing_gap=3)
    return np.asarray(image), is_other_size


def decode_all(
    paths: Sequence[Path], image_size: int, max_megapixels: int = MAX_MEGAPIXELS
) -> tuple[list[np.ndarray], int]:
    """Every picture, in their order, and how many had another size; decoded in threads, with a bar in a terminal.

    ValueError that names what cannot be read, all of it at once.
    """
    pixels, num_resized = [], 0
    complaints: dict[Path, Unreadable] = {}

    def attempt(path: Path) -> tuple[np.ndarray, bool] | Unreadable:
        try:
            return decode(path, image_size, max_megapixels)
        except Unreadable as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool, bar("decoding pictures", len(paths)) as advance:
        try:
            for path, found in zip(paths, pool.map(attempt, paths), strict=True):
                if isinstance(found, Unreadable):
                    complaints[path] = found
                else:
                    pixels.append(found[0])
                    num_resized += found[1]
                advance(1)
        except BaseException:  # such as Ctrl-C
            pool.shutdown(cancel_futures=True)
            raise
    if complaints:
        raise together(complaints, len(paths))
    return pixels, num_resized


def together(complaints: Mapping[Path, Unreadable], num_paths: int) -> ValueError:
    """One complaint about several pictures of a folder, or the only one there is."""
    first, *others = complaints.values()
    if not others:
        return first
    folder = Path(os.path.commonpath([path.parent for path in complaints]))
    names = named(path.relative_to(folder) for path in complaints)
    return ValueError(
        f"{len(complaints):,} of {num_paths:,} images are not readable. Got in {folder}: {names}; mend them or take "
        f"them away. The first: {first.reason}"
    )


def opened(path: Path, max_megapixels: int) -> Image.Image:
    if Image.MAX_IMAGE_PIXELS and max_megapixels * 1e6 > 2 * Image.MAX_IMAGE_PIXELS:  # where PIL itself would refuse
        Image.MAX_IMAGE_PIXELS = int(max_megapixels * 1e6)
    try:
        return Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        with path.open("rb") as file:
            head = file.read(12)
    refuse_if(head[:4] in TIFFS, "a TIFF that is damaged, or of numbers that Pillow does not read; save it with 8 bits")
    refuse_if(head[4:8] != b"ftyp" or head[8:] not in HEIC_BRANDS, "of no format that is read here")
    refuse_if(find_spec("pillow_heif") is None, "HEIC is read with pillow-heif: pip install -e '.[heic]', in the clone")
    import pillow_heif

    pillow_heif.register_heif_opener()
    return Image.open(path, formats=["HEIF"])


def white_and_black(image: Image.Image) -> tuple[float, float] | None:
    """The numbers that stand for white and for black; None where PIL itself knows.

    ValueError where nothing says: PIL would clip them at 255, and a dark picture could not be told from a misread one.
    """
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    refuse_if(
        SIGNED in np.atleast_1d(tags.get(SAMPLE_FORMAT, 1)),
        "numbers with a sign, of which none stands for white; save it with 8 or 16 bits without one",
    )
    white = None
    if image.mode.startswith("I;16"):
        white = 2 ** int(np.atleast_1d(tags.get(BITS_PER_SAMPLE, 16))[0]) - 1
    elif image.mode == "I":
        refuse_if(
            image.format != "PPM",  # which PIL scales to 16 bits
            "whole numbers of 32 bits, of which none stands for white; save it with 8 or 16 bits",
        )
        white = 65535
    elif image.mode == "F":
        white = 1.0
    if white is None:
        return None
    return (0, white) if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else (white, 0)


def as_rgb(image: Image.Image, scale: tuple[float, float] | None) -> Image.Image:
    if scale:
        levels, (white, black) = np.asarray(image).astype(np.float32), scale
        low, high = levels.min(), levels.max()
        refuse_if(
            not 0 <= low <= high <= max(scale),
            f"numbers from {low:g} to {high:g}, where {black:g} is black and {white:g} is white; scale them, or save "
            f"it with 8 bits",
        )
        transparent = levels == image.info.get("transparency", -1)
        levels = np.rint((levels - black) * (255 / (white - black)))
        image = Image.fromarray(np.where(transparent, 255, levels).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")
