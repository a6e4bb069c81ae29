"""Whether one of two runs, or ensembles, is better, by what they predicted for the same test images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from cifar_resnet.errors import UsageError, refuse_if
from cifar_resnet.quoting import command_line
from cifar_resnet.results.predictions import FILE, Predictions


def comparison(pair: Sequence[str], resamples: int, seed: int) -> dict[str, str]:
    """What can be said, by its name. pair: the folders that `cifar-train` or `cifar-evaluate` left, or their files.

    McNemar's exact test on the images that only one of them predicts rightly: how likely so unequal a share is, if
    either were as likely to be that one. The bootstrap draws the images anew.
    """
    refuse_if(len(pair) != 2, f"compare needs two run folders. Got {len(pair)}; give cifar-report compare A B")
    first, second = map(Path, pair)
    a, b = predictions_of(first), predictions_of(second)
    for path, each in ((first, a), (second, b)):
        refuse_if(
            each.conditions > 1,
            f"a comparison is of test images that come once. Got {path}, of {each.conditions} conditions; compare what "
            f"evaluation.json says of them",
        )
    is_part = any(len(each.labels) < each.num_images for each in (a, b))
    got = f"Got {a.share} in {first} and {b.share} in {second}" if is_part else f"Got {first} and {second}"
    refuse_if(
        a.images_hash != b.images_hash or not np.array_equal(a.labels, b.labels),
        f"a comparison needs the same test images. {got}, which differ in them"
        + "; cifar-evaluate checkpoint=… predicts all, and names their folder" * is_part,
    )
    right_a, right_b = ((each.log_probs.argmax(1) == each.labels).numpy() for each in (a, b))
    only_a, only_b, count = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum()), len(right_a)
    # drawing images anew is drawing how many of the three kinds there are
    kinds = np.array([only_a, only_b, count - only_a - only_b])
    draws = np.random.default_rng(seed).multinomial(count, kinds / count, size=resamples)
    low, high = np.quantile((draws[:, 1] - draws[:, 0]) / count, [0.025, 0.975])
    p = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    difference = right_b.mean() - right_a.mean()
    verdict = "no difference shown" if p >= 0.05 else f"{second if difference > 0 else first} is better"
    return ({"test images": a.share} if is_part else {}) | {
        "A": f"{right_a.mean():.2%} right: {first}",
        "B": f"{right_b.mean():.2%} right: {second}",
        "B - A": f"{100 * difference:+.2f} points, 95% interval {100 * low:+.2f} … {100 * high:+.2f} (bootstrap)",
        "only A right": f"{only_a:,} of {count:,} images",
        "only B right": f"{only_b:,}",
        "McNemar": f"p = {p:.2g}, exact: {verdict}",
    }


def predictions_of(path: Path) -> Predictions:
    file = path if path.is_file() else path / FILE
    if not file.is_file():
        below = sorted(each.parent for each in path.glob(f"evaluation*/{FILE}"))
        leaves_one = f"{command_line('cifar-evaluate', f'checkpoint={path}')} leaves one, and names its folder"
        raise UsageError(f"no {FILE} in {path}; {f'give {below[0]}' if below else leaves_one}")
    try:
        return Predictions.load(file)
    except Exception as error:  # a damaged archive may raise anything
        reason = str(error) if isinstance(error, UsageError) else type(error).__name__
        raise ValueError(f"not readable: {file} ({reason}); cifar-evaluate makes a new one") from error
