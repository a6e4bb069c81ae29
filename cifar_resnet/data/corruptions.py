"""Common corruptions of images (Hendrycks & Dietterich 2019, arXiv 1903.12261), as that paper's authors define them for
CIFAR: noise, blur, weather and digital ones, five severities each.

Not CIFAR-10-C itself: other random numbers, and their motion blur, resizing and affine maps by torch in place of
ImageMagick and OpenCV. Frost and spatter are left out: one needs pictures of frost, the other OpenCV's edges. As in the
authors' program, glass blur lets a pixel take its neighbour's colour, where the paper says that the two change places.
"""

import io
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from cifar_resnet.seeds import seed_for

Corruption = Callable[..., Tensor]  # of images in [0, 1], a generator, and its parameters at one severity
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601: the grey of a colour


def uniform(low: float, high: float, *shape: int, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=generator)


def gaussian_noise(images: Tensor, generator: Generator, scale: float) -> Tensor:
    return images + scale * torch.randn(images.shape, generator=generator)


def shot_noise(images: Tensor, generator: Generator, photons: float) -> Tensor:
    """photons: counted where the light is full."""
    return torch.poisson(images * photons, generator) / photons


def impulse_noise(images: Tensor, generator: Generator, amount: float) -> Tensor:
    """Salt and pepper, as often the one as the other. amount: the share of values."""
    drawn = torch.rand(images.shape, generator=generator)
    return images.masked_fill(drawn < amount / 2, 0.0).masked_fill(drawn > 1 - amount / 2, 1.0)


def speckle_noise(images: Tensor, generator: Generator, scale: float) -> Tensor:
    return images + images * scale * torch.randn(images.shape, generator=generator)


def smoothed(images: Tensor, sigma: float, mode: str = "replicate", truncate: float = 4.0) -> Tensor:
    """Gaussian blur. sigma: in pixels; truncate: how many of it the kernel reaches; mode: of the padding."""
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return images
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    for horizontal in (True, False):
        padding = (radius, radius, 0, 0) if horizontal else (0, 0, radius, radius)
        along = kernel if horizontal else kernel.transpose(2, 3)
        images = F.conv2d(padded(images, padding, mode), along, groups=images.shape[1])
    return images


def padded(images: Tensor, padding: Sequence[int], mode: str) -> Tensor:
    """mode: torch's, or "symmetric", which repeats the edge as it mirrors (SciPy calls it reflect)."""
    if mode != "symmetric":
        return F.pad(images, tuple(padding), mode=mode)
    height, width = images.shape[2:]
    left, right, top, bottom = padding
    rows, columns = (mirrored(torch.arange(-low, size + high), size) for low, high, size in
                     ((top, bottom, height), (left, right, width)))  # fmt: skip
    return images[:, :, rows][:, :, :, columns]


def mirrored(places: Tensor, size: int) -> Tensor:
    """Places within a row of this size, for places beyond it: d c b a | a b c d | d c b a."""
    places = places.remainder(2 * size)
    return torch.where(places < size, places, 2 * size - 1 - places)


def gaussian_blur(images: Tensor, generator: Generator, sigma: float) -> Tensor:
    return smoothed(images, sigma)


def glass_blur(images: Tensor, generator: Generator, sigma: float, reach: int, rounds: int) -> Tensor:
    """Blurred, each pixel replaced by one up to `reach` above and to the left, and blurred again."""
    images = to_bytes(smoothed(images, sigma))
    count, _, height, width = images.shape
    each = torch.arange(count)[:, None, None]
    rows, columns = torch.arange(reach + 1, height - reach + 1), torch.arange(reach + 1, width - reach + 1)
    for _ in range(rounds):
        across, down = torch.randint(-reach, reach, (2, count, len(rows), len(columns)), generator=generator)
        found = images[each, :, rows[:, None] + down, columns + across]
        images[:, :, reach + 1 : height - reach + 1, reach + 1 : width - reach + 1] = found.permute(0, 3, 1, 2)
    return smoothed(images / 255, sigma)


def defocus_blur(images: Tensor, generator: Generator, radius: float, alias_sigma: float) -> Tensor:
    """A disk, itself blurred within its 3x3 neighbourhood."""
    reach = math.floor(radius) + 1
    places = torch.arange(-reach, reach + 1)
    disk = (places[:, None] ** 2 + places[None] ** 2 <= radius**2).float()
    around = torch.exp(-0.5 * (torch.arange(-1, 2) / alias_sigma) ** 2)
    around = around / around.sum()
    kernel = F.conv2d((disk / disk.sum())[None, None], (around[:, None] * around[None])[None, None], padding=1)
    kernel = kernel.expand(images.shape[1], 1, -1, -1)
    return F.conv2d(F.pad(images, [reach] * 4, mode="reflect"), kernel, groups=images.shape[1])


def moved(images: Tensor, radius: int, sigma: float, angles: Tensor) -> Tensor:
    """Motion blur as ImageMagick's: half a Gaussian along a line from each pixel, the edges repeated.

    angles: (N,), in degrees, clockwise from the right as y points down.
    """
    taps = 2 * radius + 1
    weights = torch.exp(-0.5 * (torch.arange(taps) / sigma) ** 2)
    weights = weights / weights.sum()
    steps, turns = torch.arange(taps)[:, None], torch.deg2rad(angles)
    across, down = (torch.ceil(steps * part - 0.5).long() for part in (turns.cos(), turns.sin()))  # (taps, N)
    height, width = images.shape[2:]
    each = torch.arange(len(images))[:, None, None]
    found = torch.zeros_like(images)
    for weight, dx, dy in zip(weights, across, down, strict=True):
        rows = (torch.arange(height) + dy[:, None]).clamp(0, height - 1)[:, :, None]
        columns = (torch.arange(width) + dx[:, None]).clamp(0, width - 1)[:, None, :]
        found += weight * images[each, :, rows, columns].permute(0, 3, 1, 2)
    return found


def motion_blur(images: Tensor, generator: Generator, radius: int, sigma: float) -> Tensor:
    return moved(images, radius, sigma, uniform(-45, 45, len(images), generator=generator))


def zoomed(images: Tensor, factor: float) -> Tensor:
    """Enlarged, bilinearly, about the centre, and as large as before."""
    size = images.shape[2]
    inner = math.ceil(size / factor)
    start = (size - inner) // 2
    middle = images[:, :, start : start + inner, start : start + inner]
    large = F.interpolate(middle, size=[round(inner * factor)] * 2, mode="bilinear", align_corners=True)
    start = (large.shape[2] - size) // 2
    return large[:, :, start : start + size, start : start + size]


def zoom_blur(images: Tensor, generator: Generator, end: float) -> Tensor:
    """The mean of the image and its enlargements by 1, 1.01, … up to end, or as rounding has it the one before."""
    factors = np.arange(1, end, 0.01)
    return (images + sum(zoomed(images, factor) for factor in factors)) / (len(factors) + 1)


def fog(images: Tensor, generator: Generator, amount: float, decay: float) -> Tensor:
    """Bright clouds over the image, which keeps its largest value. decay: how much smoother clouds are than patches."""
    clouds = plasma(len(images), images.shape[2], decay, generator)[:, None]
    largest = images.amax(dim=(1, 2, 3), keepdim=True)
    return (images + amount * clouds) * largest / (largest + amount)


def plasma(count: int, size: int, decay: float, generator: Generator) -> Tensor:
    """Heights in [0, 1] by the diamond-square algorithm (Fournier et al. 1982): (count, size, size)."""
    whole = 2 ** math.ceil(math.log2(size))
    heights, step, amount = torch.zeros(count, whole, whole), whole, 100.0

    def around(total: Tensor) -> Tensor:
        return total / 4 + amount * uniform(-amount, amount, *total.shape, generator=generator)

    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        sums = corners + corners.roll(-1, 1)
        heights[:, half::step, half::step] = around(sums + sums.roll(-1, 2))
        middles, corners = heights[:, half::step, half::step], heights[:, ::step, ::step]
        heights[:, ::step, half::step] = around(middles + middles.roll(1, 1) + corners + corners.roll(-1, 2))
        heights[:, half::step, ::step] = around(middles + middles.roll(1, 2) + corners + corners.roll(-1, 1))
        step, amount = half, amount / decay
    heights -= heights.amin(dim=(1, 2), keepdim=True)
    return (heights / heights.amax(dim=(1, 2), keepdim=True))[:, :size, :size]


def snow(
    images: Tensor,
    generator: Generator,
    mean: float,
    spread: float,
    zoom: float,
    threshold: float,
    radius: int,
    sigma: float,
    clear: float,
) -> Tensor:
    """Flakes that have fallen, and the image paler by 1 - clear."""
    count, _, *sides = images.shape
    flakes = zoomed(mean + spread * torch.randn(count, 1, *sides, generator=generator), zoom)
    flakes = to_bytes(flakes.masked_fill(flakes < threshold, 0.0)) / 255
    flakes = to_bytes(moved(flakes, radius, sigma, uniform(-135, -45, count, generator=generator))) / 255
    grey = (images * torch.tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    pale = torch.maximum(images, grey * 1.5 + 0.5)
    return clear * images + (1 - clear) * pale + flakes + flakes.rot90(2, (2, 3))


def brightness(images: Tensor, generator: Generator, amount: float) -> Tensor:
    """In HSV the value larger, hue and saturation as they are."""
    value = images.amax(1, keepdim=True)
    brighter = (value + amount).clamp(max=1)
    return torch.where(value > 0, images * brighter / value.clamp(min=1e-6), brighter)


def saturate(images: Tensor, generator: Generator, factor: float, more: float) -> Tensor:
    """In HSV the saturation times factor, plus more. A grey has hue 0, red, as elsewhere."""
    value, least = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    share = (value - least) / value.clamp(min=1e-6)
    other = (share * factor + more).clamp(0, 1)
    red = torch.tensor([0.0, 1.0, 1.0])[:, None, None]
    away = torch.where(share > 0, (value - images) / (value * share).clamp(min=1e-6), red)  # of 1 where it is least
    return value * (1 - other * away)


def contrast(images: Tensor, generator: Generator, factor: float) -> Tensor:
    mean = images.mean(dim=(2, 3), keepdim=True)
    return (images - mean) * factor + mean


def jpeg_compression(images: Tensor, generator: Generator, quality: int) -> Tensor:
    def compressed(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return by_picture(images, compressed)


def pixelate(images: Tensor, generator: Generator, factor: float) -> Tensor:
    small = [int(side * factor) for side in (images.shape[3], images.shape[2])]
    return by_picture(
        images,
        lambda picture: picture.resize(small, Image.Resampling.BOX).resize(picture.size, Image.Resampling.BOX),
    )


def by_picture(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    pictures = map(Image.fromarray, to_bytes(images).permute(0, 2, 3, 1).numpy())
    found = np.stack([np.asarray(change(picture)) for picture in pictures])
    return torch.from_numpy(found).permute(0, 3, 1, 2) / 255


def elastic_transform(images: Tensor, generator: Generator, strength: float, sigma: float, affine: float) -> Tensor:
    """A random affine map, and then a smooth random displacement (Simard et al. 2003); all in parts of the side.

    strength, sigma: of the displacement; affine: how far the map moves three points, at most.
    """
    count, _, height, width = images.shape
    strength, sigma, affine = (part * width for part in (strength, sigma, affine))
    middle, third = width // 2, width // 3
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]) * third + middle  # x, y
    goals = corners + uniform(-affine, affine, count, 3, 2, generator=generator)
    # from each place of the new image to where it was
    back = torch.linalg.solve(F.pad(goals, (0, 1), value=1.0), corners.expand(count, -1, -1))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)], dim=-1).float().view(-1, 3)
    images = sampled(images, (places @ back).view(count, height, width, 2), align_corners=True)
    if strength == 0:
        return images
    drawn = uniform(-1, 1, count, 2, height, width, generator=generator)
    away = strength * smoothed(drawn, sigma, "symmetric", truncate=3.0)
    places = torch.stack([x, y], dim=-1) + away.permute(0, 2, 3, 1)
    return sampled(images, places, align_corners=False)


def sampled(images: Tensor, places: Tensor, align_corners: bool) -> Tensor:
    """Bilinearly. places: (N, H, W, 2), x and y in pixels; beyond the edge it is mirrored, as align_corners says at the
    edge's pixels or behind them."""
    sides = torch.tensor([images.shape[3], images.shape[2]])
    grid = 2 * places / (sides - 1) - 1 if align_corners else (2 * places + 1) / sides - 1
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=align_corners)


def to_bytes(images: Tensor) -> Tensor:
    """Of values in [0, 1], the rest cut: uint8, rounded down as the authors'."""
    return (images.clamp(0, 1) * 255 + 1e-4).to(torch.uint8)  # a whole number of 255ths stays that


# by severity, from 1 to 5: what the authors' program for CIFAR has
CORRUPTIONS: dict[str, tuple[Corruption, Sequence[tuple[float, ...]]]] = {
    "gaussian_noise": (gaussian_noise, [(0.04,), (0.06,), (0.08,), (0.09,), (0.10,)]),
    "shot_noise": (shot_noise, [(500,), (250,), (100,), (75,), (50,)]),
    "impulse_noise": (impulse_noise, [(0.01,), (0.02,), (0.03,), (0.05,), (0.07,)]),
    "speckle_noise": (speckle_noise, [(0.06,), (0.1,), (0.12,), (0.16,), (0.2,)]),
    "gaussian_blur": (gaussian_blur, [(0.4,), (0.6,), (0.7,), (0.8,), (1.0,)]),
    "glass_blur": (glass_blur, [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)]),
    "defocus_blur": (defocus_blur, [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)]),
    "motion_blur": (motion_blur, [(6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)]),
    "zoom_blur": (zoom_blur, [(1.06,), (1.11,), (1.16,), (1.21,), (1.26,)]),
    "fog": (fog, [(0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)]),
    "snow": (snow, [
        (0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.95), (0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4.0, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.8),
    ]),
    "brightness": (brightness, [(0.05,), (0.1,), (0.15,), (0.2,), (0.3,)]),
    "contrast": (contrast, [(0.75,), (0.5,), (0.4,), (0.3,), (0.15,)]),
    "saturate": (saturate, [(0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)]),
    "jpeg_compression": (jpeg_compression, [(80,), (65,), (58,), (50,), (40,)]),
    "pixelate": (pixelate, [(0.95,), (0.9,), (0.85,), (0.75,), (0.65,)]),
    "elastic_transform": (elastic_transform, [
        (0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03),
    ]),
}  # fmt: skip


def corrupted(images: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
    """The same images, corrupted: each of them in its own way, where there is chance in it.

    images: (N, 3, H, W) uint8 on the CPU, square; name: of `CORRUPTIONS`; severity: 1 to 5.
    seed: the same gives the same, for the same images.
    """
    corrupt, by_severity = CORRUPTIONS[name]
    generator = torch.Generator().manual_seed(seed_for(name, seed, severity))
    return torch.cat(list(chunks(images, corrupt, by_severity[severity - 1], generator)))


def chunks(images: Tensor, corrupt: Corruption, how: Sequence[float], generator: Generator) -> Iterator[Tensor]:
    for batch in images.split(2000):
        yield to_bytes(corrupt(batch.float() / 255, generator, *how))
