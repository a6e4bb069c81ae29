"""Corruptions, against SciPy, Pillow, colorsys and plain loops."""

import colorsys
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from cifar_resnet import constraints
from cifar_resnet.data import Synthetic, corruptions
from cifar_resnet.data.corruptions import CORRUPTIONS, corrupted


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """(40, 3, 32, 32) uint8, of colours, edges and some noise."""
    return Synthetic(num_test=40).read(train=False)[0]


@pytest.fixture
def levels(images) -> torch.Tensor:
    """A few of them in [0, 1]."""
    return images[:4].double().float() / 255


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_plane(images: torch.Tensor, change) -> torch.Tensor:
    return torch.stack([torch.stack([torch.from_numpy(change(plane.numpy())) for plane in image]) for image in images])


def test_names_are_those_of_the_benchmark_but_for_two():
    assert {*constraints.CORRUPTIONS} - CORRUPTIONS.keys() == {"frost", "spatter"}
    assert CORRUPTIONS.keys() < {*constraints.CORRUPTIONS}
    assert all(len(by_severity) == 5 for _, by_severity in CORRUPTIONS.values())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_one_seed_gives_the_same_images_and_the_worst_severity_changes_more_than_the_least(images, name):
    first, again = (corrupted(images, name, 1) for _ in range(2))
    assert torch.equal(first, again)
    assert first.dtype == torch.uint8
    assert first.shape == images.shape
    change = [(corrupted(images, name, severity).float() - images).abs().mean() for severity in (1, 5)]
    # an elastic map moves less the more it bends, and colours are first taken away, and then added
    assert change[1] > change[0] > 0 or name in ("elastic_transform", "saturate")
    is_drawn = name not in (
        "gaussian_blur", "defocus_blur", "zoom_blur", "brightness", "contrast", "saturate", "jpeg_compression",
        "pixelate",
    )  # fmt: skip
    assert torch.equal(corrupted(images, name, 3, seed=1), corrupted(images, name, 3, seed=2)) != is_drawn


@pytest.mark.parametrize("sigma", [0.4, 1.0])
def test_gaussian_blur_is_scipys(levels, sigma):
    expected = by_plane(levels, lambda plane: ndimage.gaussian_filter(plane, sigma, mode="nearest"))
    assert torch.allclose(corruptions.gaussian_blur(levels, drawn(), sigma), expected, atol=1e-5)


def test_the_smoothing_of_displacements_is_scipys_with_mirrored_edges(levels):
    expected = by_plane(levels, lambda plane: ndimage.gaussian_filter(plane, 6.4, mode="reflect", truncate=3))
    assert torch.allclose(corruptions.smoothed(levels, 6.4, "symmetric", truncate=3.0), expected, atol=1e-5)


@pytest.mark.parametrize(("radius", "alias"), [(0.3, 0.4), (1.0, 0.2), (1.5, 0.1)])
def test_defocus_is_the_blurred_disk_of_a_plain_loop(levels, radius, alias):
    disk, around = np.zeros((17, 17)), np.zeros((3, 3))
    for y in range(17):
        for x in range(17):
            disk[y, x] = (y - 8) ** 2 + (x - 8) ** 2 <= radius**2
    for y in range(3):
        for x in range(3):
            around[y, x] = math.exp(-((y - 1) ** 2 + (x - 1) ** 2) / (2 * alias**2))
    kernel = ndimage.correlate(disk / disk.sum(), around / around.sum(), mode="constant")
    expected = by_plane(levels, lambda plane: ndimage.correlate(plane.astype(float), kernel, mode="mirror"))
    assert torch.allclose(corruptions.defocus_blur(levels, drawn(), radius, alias).double(), expected, atol=1e-5)


def test_motion_blur_is_a_plain_walk_along_the_line(levels):
    angles = torch.tensor([0.0, 30.0, -45.0, -100.0])
    found = corruptions.moved(levels, 6, 2.0, angles)
    weights = np.array([math.exp(-(step**2) / 8) for step in range(13)])
    weights /= weights.sum()
    for image, angle, moved in zip(levels.numpy(), angles.tolist(), found.numpy(), strict=True):
        for y, x in ((0, 0), (5, 17), (31, 31), (16, 2)):
            total = np.zeros(3)
            for step, weight in enumerate(weights):
                dx = math.ceil(step * math.cos(math.radians(angle)) - 0.5)
                dy = math.ceil(step * math.sin(math.radians(angle)) - 0.5)
                total += weight * image[:, min(max(y + dy, 0), 31), min(max(x + dx, 0), 31)]
            assert moved[:, y, x] == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("factor", [1.0, 1.05, 1.24, 2.25])
def test_enlarging_is_scipys(levels, factor):
    inner = math.ceil(32 / factor)
    start = (32 - inner) // 2
    large = by_plane(
        levels, lambda plane: ndimage.zoom(plane[start : start + inner, start : start + inner], factor, order=1)
    )
    cut = (large.shape[2] - 32) // 2
    found = corruptions.zoomed(levels, factor)
    assert torch.allclose(found, large[:, :, cut : cut + 32, cut : cut + 32], atol=1e-5)


def test_zoom_blur_is_the_mean_over_the_published_factors(levels):
    factors = [1 + step / 100 for step in range(12)]  # rounding lets NumPy's arange end behind 1.11
    expected = (levels + sum(corruptions.zoomed(levels, factor) for factor in factors)) / 13
    assert torch.allclose(corruptions.zoom_blur(levels, drawn(), 1.11), expected, atol=1e-5)


@pytest.mark.parametrize(("align_corners", "mode"), [(True, "mirror"), (False, "reflect")])
def test_sampling_is_scipys(levels, align_corners, mode):
    places = torch.rand(4, 32, 32, 2, generator=drawn()) * 50 - 9
    found = corruptions.sampled(levels, places, align_corners)
    for image, where, sampled in zip(levels.numpy(), places.numpy(), found.numpy(), strict=True):
        for plane, expected in zip(image, sampled, strict=True):
            other = ndimage.map_coordinates(plane, [where[..., 1], where[..., 0]], order=1, mode=mode)
            assert other == pytest.approx(expected, abs=2e-4)


def test_the_affine_map_moves_three_points_where_they_are_drawn():
    """On an image that says where each of its pixels was."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    places = torch.stack([x, y, x])[None] / 31
    found = corruptions.elastic_transform(places, drawn(3), 0.0, 0.0, 0.08)[0] * 31
    corners = torch.tensor([[26.0, 26.0], [26.0, 6.0], [6.0, 6.0]])
    goals = corners + corruptions.uniform(-2.56, 2.56, 1, 3, 2, generator=drawn(3))[0]
    for corner, goal in zip(corners, goals, strict=True):
        sampled = corruptions.sampled(found[None] / 31, goal.view(1, 1, 1, 2), align_corners=True)[0, :2, 0, 0] * 31
        assert torch.allclose(sampled, corner, atol=0.05)


def of_each_pixel(image: torch.Tensor, change) -> torch.Tensor:
    """In HSV. change: of the three."""
    found = torch.empty_like(image)
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            found[:, y, x] = torch.tensor(colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*image[:, y, x].tolist()))))
    return found


def test_brightness_and_saturation_are_colorsyss(levels):
    image = levels[0].clone()
    image[:, 0, 0], image[:, 0, 1], image[:, 0, 2] = 0.0, 0.5, 1.0  # black, grey, white
    bright = corruptions.brightness(image[None], drawn(), 0.3)[0]
    assert torch.allclose(bright, of_each_pixel(image, lambda h, s, v: (h, s, min(1, v + 0.3))), atol=1e-5)
    for factor, more in ((0.3, 0.0), (2.5, 0.2)):
        strong = corruptions.saturate(image[None], drawn(), factor, more)[0]
        expected = of_each_pixel(image, lambda h, s, v, f=factor, m=more: (h, min(1, s * f + m), v))
        assert torch.allclose(strong, expected, atol=1e-5)


def test_contrast_draws_each_channel_to_its_mean(levels):
    found = corruptions.contrast(levels, drawn(), 0.4)
    for image, other in zip(levels.numpy(), found.numpy(), strict=True):
        for plane, expected in zip(image, other, strict=True):
            assert (plane - plane.mean()) * 0.4 + plane.mean() == pytest.approx(expected, abs=1e-5)


def test_jpeg_and_pixelate_are_pillows(images):
    for image, compressed, coarse in zip(
        images[:5], corrupted(images[:5], "jpeg_compression", 5), corrupted(images[:5], "pixelate", 5), strict=True
    ):
        picture, file = Image.fromarray(image.permute(1, 2, 0).numpy()), io.BytesIO()
        picture.save(file, "JPEG", quality=40)
        assert np.array_equal(np.asarray(Image.open(file)), compressed.permute(1, 2, 0))
        small = picture.resize((20, 20), Image.Resampling.BOX)
        assert np.array_equal(np.asarray(small.resize((32, 32), Image.Resampling.BOX)), coarse.permute(1, 2, 0))


def test_noises_have_the_published_spread():
    grey = torch.full((200, 3, 32, 32), 0.5)
    assert corruptions.gaussian_noise(grey, drawn(), 0.08).std().item() == pytest.approx(0.08, rel=0.01)
    assert corruptions.speckle_noise(grey, drawn(), 0.2).std().item() == pytest.approx(0.1, rel=0.01)
    shot = corruptions.shot_noise(grey, drawn(), 50)
    assert shot.mean().item() == pytest.approx(0.5, rel=0.01)
    assert shot.std().item() == pytest.approx((25**0.5) / 50, rel=0.01)
    impulse = corruptions.impulse_noise(grey, drawn(), 0.07)
    for value in (0.0, 1.0):
        assert (impulse == value).float().mean().item() == pytest.approx(0.035, rel=0.03)


def test_glass_takes_each_pixel_from_above_or_from_the_left(images):
    numbered = torch.arange(1024).view(1, 1, 32, 32) // torch.tensor([1, 256])[:, None, None, None]
    image = torch.cat([numbered[:1] % 256, numbered[1:], numbered[1:]], dim=1).to(torch.uint8)
    found = corrupted(image, "glass_blur", 1)[0].long()  # a sigma of 0.05 blurs nothing
    places = found[0] + 256 * found[1]
    for y in range(32):
        for x in range(32):
            source = divmod(places[y, x].item(), 32)
            inside = y >= 2 and x >= 2
            assert source in ({(y - dy, x - dx) for dy in (0, 1) for dx in (0, 1)} if inside else {(y, x)})
    assert (places != torch.arange(1024).view(32, 32)).float().mean() > 0.5


def test_clouds_are_those_of_a_plain_loop():
    found = corruptions.plasma(2, 8, 2.0, drawn())
    generator, heights, step, amount = drawn(), np.zeros((2, 8, 8)), 8, 100.0

    def noise(rows: int, columns: int) -> np.ndarray:
        return amount * corruptions.uniform(-amount, amount, 2, rows, columns, generator=generator).numpy()

    while step >= 2:
        half, count = step // 2, 8 // step
        drawn_now = noise(count, count)
        for i, y in enumerate(range(half, 8, step)):
            for j, x in enumerate(range(half, 8, step)):
                corners = [heights[:, (y + dy) % 8, (x + dx) % 8] for dy in (-half, half) for dx in (-half, half)]
                heights[:, y, x] = sum(corners) / 4 + drawn_now[:, i, j]
        for first, second in ((0, half), (half, 0)):
            drawn_now = noise(count, count)
            for i, y in enumerate(range(first, 8, step)):
                for j, x in enumerate(range(second, 8, step)):
                    sides = [(y - half, x), (y + half, x), (y, x - half), (y, x + half)]
                    heights[:, y, x] = sum(heights[:, a % 8, b % 8] for a, b in sides) / 4 + drawn_now[:, i, j]
        step, amount = half, amount / 2
    heights -= heights.min(axis=(1, 2), keepdims=True)
    assert found.numpy() == pytest.approx(heights / heights.max(axis=(1, 2), keepdims=True), abs=1e-4)


def test_fog_keeps_the_largest_value_and_brightens_the_dark(levels):
    found = corruptions.fog(levels * 0.8, drawn(), 1.0, 2.0)
    assert (found.amax(dim=(1, 2, 3)) <= levels.amax(dim=(1, 2, 3)) * 0.8 + 1e-6).all()
    black = corruptions.fog(torch.cat([torch.zeros(1, 3, 32, 31), torch.ones(1, 3, 32, 1)], 3), drawn(), 1.0, 2.0)
    assert black[..., :31].mean() > 0.1


def test_snow_on_black_is_pale_by_the_published_share_and_has_flakes():
    found = corruptions.snow(torch.zeros(20, 3, 32, 32), drawn(), *CORRUPTIONS["snow"][1][3])
    assert found.min().item() == pytest.approx(0.15 * 0.5, abs=1e-5)
    assert (found > 0.3).float().mean() > 0.01
    assert torch.equal(found[:, 0], found[:, 1])  # white


def test_the_smooth_displacement_is_scipys(levels):
    strength, sigma = 0.1, 0.04
    found = corruptions.elastic_transform(levels, drawn(3), strength, sigma, 0.0)
    generator = drawn(3)
    corruptions.uniform(0.0, 0.0, 4, 3, 2, generator=generator)  # of the affine map, which moves nothing
    noise = corruptions.uniform(-1, 1, 4, 2, 32, 32, generator=generator).numpy()
    y, x = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    for image, own, other in zip(levels.numpy(), noise, found.numpy(), strict=True):
        right, down = (32 * strength * ndimage.gaussian_filter(each, 32 * sigma, truncate=3.0) for each in own)
        for plane, expected in zip(image, other, strict=True):
            moved = ndimage.map_coordinates(plane, [y + down, x + right], order=1, mode="reflect")
            assert moved == pytest.approx(expected, abs=1e-3)
    assert (found - levels).abs().mean() > 0.01
