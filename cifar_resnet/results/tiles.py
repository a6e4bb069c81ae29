"""Small pictures side by side in one PNG, enlarged, with what each shows; the file says where each of them is."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from cifar_resnet.runs import replacing
from cifar_resnet.terminal import cut

AUGMENTED = "augmented_batch.png"  # in a run's folder
KEY = "cifar_resnet tiles"
FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
SIDE, GAP, TEXT_HEIGHT, TEXT_SIZE = 96, 6, 16, 11  # pixels


@dataclass
class Picture:
    """Of a few pixels, with what is said below it. pixels: (H, W, 3) uint8."""

    pixels: np.ndarray
    title: str
    text: str

    @property
    def src(self) -> str:
        """For an <img>."""
        file = io.BytesIO()
        Image.fromarray(self.pixels).save(file, "PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def write(path: Path, images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """images: (N, H, W, 3) uint8; captions: as many. Returns the whole picture, (H', W', 3) uint8."""
    count, height, width, _ = images.shape
    scale = max(1, round(SIDE / max(height, width)))
    columns = max(1, round(count**0.5))
    step_x, step_y = width * scale + GAP, height * scale + TEXT_HEIGHT + GAP
    whole = Image.new("RGB", (columns * step_x + GAP, -(-count // columns) * step_y + GAP), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.truetype(str(FONT), TEXT_SIZE)
    corners = [(GAP + place % columns * step_x, GAP + place // columns * step_y) for place in range(count)]
    for pixels, caption, (x, y) in zip(images, captions, corners, strict=True):
        whole.paste(Image.fromarray(pixels).resize((width * scale, height * scale), Image.Resampling.NEAREST), (x, y))
        draw.text((x, y + height * scale + 1), fitted(caption, font, width * scale), "#1f2933", font)
    about = PngInfo()
    about.add_itxt(KEY, json.dumps({"scale": scale, "size": [width, height], "corners": corners, "captions": captions}))
    with replacing(path) as file:
        whole.save(file, "PNG", pnginfo=about, compress_level=1)
    return np.asarray(whole)


def fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Cut to so many pixels."""
    found = text
    for cells in range(len(text), 1, -1):
        if font.getlength(found) <= width:
            break
        found = cut(text, cells, 2 / 3)
    return found


def read(path: Path) -> list[Picture]:
    """What `write` has put together; none where that is another file, or not there."""
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as whole:
            about = json.loads(whole.info[KEY])
            scale, (width, height) = about["scale"], about["size"]
            pixels = np.asarray(whole.convert("RGB"))
    except (OSError, KeyError, ValueError):
        return []
    return [
        Picture(pixels[y : y + height * scale : scale, x : x + width * scale : scale], caption, "")
        for (x, y), caption in zip(about["corners"], about["captions"], strict=True)
    ]
