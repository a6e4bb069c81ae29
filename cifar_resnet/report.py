"""cifar-report: all finished runs as tables and curves, or two of them compared on the same test images.

cifar-report outputs/train/<sweep folder> pivot=[model.depth,optimizer.lr]
cifar-report compare outputs/train/<run folder> outputs/train/<run folder>
"""

import json
import logging
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from omegaconf import DictConfig, OmegaConf

from cifar_resnet import runs
from cifar_resnet.command import Composer, UsageError, interpret, usage_errors

if TYPE_CHECKING:
    from cifar_resnet.answers import Answers

log = logging.getLogger("cifar_resnet")

NOTE = (
    "Accuracies: mean ± standard deviation over n runs; 95% interval of the mean by Student's t. Tested was the epoch "
    "that did best on validation images, or the last one. Ensembles answer by their members' mean probability; their "
    "loss and calibration error stand as they are and at a temperature fitted on validation images."
)
EVALUATION = "evaluation.json"  # what cifar-evaluate leaves
TABLES = {"Pivot", "Groups", "Runs", "Ensembles"}
PICTURE = "curves.png"
# Student's t, the 97.5% quantile for 1, 2, … degrees of freedom: SciPy has it, but would slow every command's start
T_975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
)  # fmt: skip
NOT_A_DIFFERENCE = ("seed", "name", "run_dir", "output_dir", "resume", "page", "data.root", "trainer.accelerator")


def main(argv: Sequence[str] | None = None) -> int:
    return interpret("report", run, argv)


def run(composer: Composer, overrides: list[str], is_sweep: bool) -> int:
    if is_sweep:
        raise UsageError("cifar-report has no sweeps: leave out -m. It takes several folders, one after the other")
    from cifar_resnet.terminal import listed, print_table, rows_table, set_up_logging

    set_up_logging()
    words = [text for text in overrides if "=" not in text]
    (job,) = composer.jobs([text for text in overrides if "=" in text])
    cfg = job.cfg
    if words[:1] == ["compare"]:
        if len(words) != 3:
            raise UsageError(f"compare needs two run folders. Got {len(words) - 1}; give cifar-report compare A B")
        with usage_errors():
            log.info(listed(comparison(Path(words[1]), Path(words[2]), cfg.resamples, cfg.seed)))
        return 0
    with usage_errors():
        folders = list(map(Path, words or cfg.runs))
        found = find(folders)
        for name in ("by", "pivot"):
            check_settings(name, cfg[name], found)
        keys = list(cfg.by) if cfg.by else differences(found)
        groups = group(found, keys)
        tables = {"Groups": group_rows(groups, keys), "Runs": run_rows(found, keys)}
        if ensembles := ensemble_rows(folders):
            tables["Ensembles"] = ensembles
        if cfg.pivot:
            tables = {"Pivot": pivot_rows(found, cfg), **tables}
        folder = Path(cfg.output)
        write(folder, tables, groups, short(keys))
    for name, rows in tables.items():
        if name != "Runs" or len(found) != len(groups):
            print_table(rows_table(rows))
    pictures = {"pictures": folder / PICTURE} if (folder / PICTURE).exists() else {}
    log.info(listed({"report": folder / "report.md", **pictures}))
    return 0


@dataclass
class Run:
    folder: Path
    record: dict

    def setting(self, key: str) -> str:
        """Its value of a setting, such as optimizer.lr, or of a group, such as model."""
        config = self.record["config"]
        if key in config["choices"]:
            return str(config["choices"][key])
        value = config
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                return ""
            value = value[part]
        return str(value)

    def metric(self, name: str) -> float | None:
        return self.record["metrics"].get(name)


def find(folders: Sequence[Path]) -> list[Run]:
    """Every finished run in these folders, by name."""
    from cifar_resnet.checkpoints import natural

    found = {}
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"runs are looked for in folders. Got {folder}, which is none")
        for path in sorted(folder.rglob(runs.RECORD), key=natural):
            found[path.parent.resolve()] = Run(path.parent, read(path))
    if not found:
        raise FileNotFoundError(f"no finished run. Got {', '.join(map(str, folders))}; train one with cifar-train")
    return list(found.values())


def check_settings(name: str, keys: object, found: Sequence[Run]) -> None:
    if keys is None:
        return
    if not OmegaConf.is_list(keys) or not all(isinstance(key, str) for key in keys):
        raise ValueError(f"{name} is a list of settings, such as [model.depth,optimizer.lr]. Got {keys}")
    for key in keys:
        if not any(member.setting(key) for member in found):
            raise ValueError(f"no run has the setting {key}. Got {name}={list(keys)}")


def read(path: Path) -> dict:
    record = runs.read_record(path.parent)
    numbers = [record[key] for key in ("parameters", "train_seconds", "epoch", "epochs")]
    numbers += [value for name, value in record["metrics"].items() if name.endswith("/acc")]
    texts = [record[key] for key in ("network", "selected", "device")]
    lists = [record["config"].get("overrides"), record["config"].get("choices")]
    whole = all(isinstance(value, (int, float)) and math.isfinite(value) for value in numbers)
    if not whole or not all(isinstance(text, str) for text in texts) or None in lists:
        raise ValueError(f"not the record of a run. Got {path}, with values of other kinds than cifar-train's")
    return record


def differences(found: Sequence[Run]) -> list[str]:
    """Settings that commands gave and that tell these runs apart, leaving out what those before already tell."""
    given = [text.lstrip("+~").partition("=")[0] for run in found for text in run.record["config"]["overrides"]]
    keys: list[str] = []
    for key in dict.fromkeys(["data", "model", *given]):
        if key not in NOT_A_DIFFERENCE and len(group(found, [*keys, key])) > len(group(found, keys)):
            keys.append(key)
    return keys


def group(found: Sequence[Run], keys: Sequence[str]) -> dict[tuple[str, ...], list[Run]]:
    """Runs that differ in nothing but what does not count, such as the seed; numbers in their order."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for member in found:
        groups.setdefault(tuple(member.setting(key) for key in keys), []).append(member)
    return dict(sorted(groups.items(), key=lambda item: [in_order(value) for value in item[0]]))


def short(keys: Sequence[str]) -> list[str]:
    """Their last names, where those tell them apart."""
    last_names = [key.rpartition(".")[2] for key in keys]
    return last_names if len(set(last_names)) == len(keys) else list(keys)


def in_order(value: str) -> tuple[float, str]:
    try:
        return float(value), ""
    except ValueError:
        return float("inf"), value


def summarised(values: Sequence[float]) -> list[str]:
    """Mean with standard deviation, and the mean's 95% interval by Student's t; for accuracies in [0, 1]."""
    if not values:
        return ["", ""]
    mean = statistics.mean(values)
    if len(values) == 1:
        return [f"{mean:.2%}", ""]
    low, high = interval(values)
    return [f"{mean:.2%} ± {statistics.stdev(values):.2%}", f"{low:.2%} … {high:.2%}"]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean's 95% interval."""
    mean, error = statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5
    freedom = len(values) - 1
    reach = error * (T_975[freedom - 1] if freedom <= len(T_975) else T_975[-1])  # wider than need be, beyond the table
    return mean - reach, mean + reach


def group_rows(groups: dict[tuple[str, ...], list[Run]], keys: Sequence[str]) -> list[list[str]]:
    """A head, and a row for each group."""
    from cifar_resnet.terminal import duration

    titles = ["n", "validation", "test", "95% of the mean", "parameters", "time", "tested epoch"]
    rows = [[*(short(keys) or ["network"]), *titles]]
    for values, members in groups.items():
        accuracies = {
            name: [acc for member in members if (acc := member.metric(name)) is not None]
            for name in ("val/acc", "test/acc")
        }
        test, spread = summarised(accuracies["test/acc"])
        sizes = sorted({member.record["parameters"] for member in members})
        seconds = statistics.mean(member.record["train_seconds"] for member in members)
        rules = sorted({member.record["selected"].partition(" ")[0] for member in members})  # "best", or "last"
        rows.append(
            [
                *(values or [members[0].record["network"]]),
                str(len(members)),
                summarised(accuracies["val/acc"])[0],
                test,
                spread,
                " … ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1]))),
                duration(seconds),
                ", ".join(rules),
            ]
        )
    return rows


def run_rows(found: Sequence[Run], keys: Sequence[str]) -> list[list[str]]:
    """A head, and a row for each run."""
    from cifar_resnet.terminal import duration

    rows = [["run", *short(keys), "seed", "validation", "test", "epoch", "of", "time", "device"]]
    for member in found:
        record = member.record
        accuracies = [member.metric(name) for name in ("val/acc", "test/acc")]
        rows.append(
            [
                str(member.folder),
                *(member.setting(key) for key in keys),
                member.setting("seed"),
                *("" if acc is None else f"{acc:.2%}" for acc in accuracies),
                str(record["epoch"]),
                str(record["epochs"]),
                duration(record["train_seconds"]),
                record["device"],
            ]
        )
    return rows


def ensemble_rows(folders: Sequence[Path]) -> list[list[str]]:
    """A head, and a row for each ensemble that cifar-evaluate has asked; nothing where there is none."""
    head = ["ensemble", "data", "members", "best member", "test", "loss", "calibrated", "error", "calibrated"]
    rows = []
    for path in sorted({path.resolve(): path for folder in folders for path in folder.rglob(EVALUATION)}.values()):
        try:
            result = json.loads(path.read_text())
            scores, calibrated = result["scores"], result["calibrated"]
            if len(result["members"]) < 2:
                continue
            row = [str(path.parent), result["data"], str(len(result["members"]))]
            row += [f"{max(member['acc'] for member in result['members']):.2%}", f"{scores['acc']:.2%}"]
            for key, form in {"loss": ".4f", "calibration_error": ".2%"}.items():
                row += [f"{scores[key]:{form}}", f"{calibrated[key]:{form}}" if calibrated else ""]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"not what cifar-evaluate leaves. Got {path} ({type(error).__name__}: {error})") from error
        rows.append(row)
    return [head, *rows] if rows else []


def pivot_rows(found: Sequence[Run], cfg: DictConfig) -> list[list[str]]:
    """A head with one setting's values, and for each value of the other a row of means."""
    if len(cfg.pivot) != 2:
        raise ValueError(f"a pivot has rows and columns. Got pivot={list(cfg.pivot)}; give two settings")
    everyone_tested = all(member.metric("test/acc") is not None for member in found)
    metric = cfg.metric or ("test/acc" if everyone_tested else "val/acc")
    if all(member.metric(metric) is None for member in found):
        known = sorted({name for member in found for name in member.record["metrics"]})
        raise ValueError(f"no run has the metric {metric}. Got metric={metric}; give {', '.join(known)}")
    cells = group(found, list(cfg.pivot))
    down, across = (sorted({key[axis] for key in cells}, key=in_order) for axis in (0, 1))
    rows = [[f"{metric}, {' by '.join(short(cfg.pivot))}", *across]]
    for row in down:
        values = [
            [value for member in cells.get((row, column), []) if (value := member.metric(metric)) is not None]
            for column in across
        ]
        percent = metric.endswith("acc")
        rows.append([row, *(summarised(v)[0] if percent else f"{statistics.mean(v):.4g}" if v else "" for v in values)])
    return rows


def write(
    folder: Path, tables: dict[str, list[list[str]]], groups: dict[tuple[str, ...], list[Run]], keys: Sequence[str]
) -> None:
    from cifar_resnet.plots import runs_figure

    curves = {}
    for values, members in groups.items():
        for member in members:
            if rows := runs.read_metrics(member.folder / runs.METRICS):
                name = ", ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True) if value)
                curves.setdefault(name or "runs", []).append(rows)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"## {name}\n\n{markdown(rows)}" for name, rows in tables.items()]
    runs.write_atomically(
        folder / "report.md",
        f"# Runs\n\n{NOTE}\n\n" + "\n".join(parts) + (f"\n![curves]({PICTURE})\n" if curves else ""),
    )
    for name, rows in tables.items():
        runs.write_table(folder / f"{name.lower()}.csv", rows)
    if curves:
        runs.save_figure(folder / PICTURE, runs_figure(curves))
    for stale in {f"{name.lower()}.csv" for name in TABLES - tables.keys()} | (set() if curves else {PICTURE}):
        (folder / stale).unlink(missing_ok=True)  # of an earlier report


def markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def comparison(first: Path, second: Path, resamples: int, seed: int) -> dict[str, str]:
    """Whether one of two runs is better, on the same test images.

    McNemar's exact test on those that only one of them answers rightly; the bootstrap draws the images anew.
    """
    import numpy as np

    if resamples < 1 or seed < 0:
        raise ValueError(f"resamples must be 1 or more, and seed 0 or more. Got {resamples} and {seed}")
    a, b = answers_of(first), answers_of(second)
    if a.images_hash != b.images_hash or not np.array_equal(a.labels, b.labels):
        raise ValueError(f"a comparison needs the same test images. Got {first} and {second}, which differ in them")
    right_a, right_b = ((each.log_probs.argmax(1) == each.labels).numpy() for each in (a, b))
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    count = len(right_a)
    # drawing images anew is drawing how many of the three kinds there are
    random = np.random.default_rng(seed)
    draws = random.multinomial(count, np.array([only_a, only_b, count - only_a - only_b]) / count, size=resamples)
    low, high = np.quantile((draws[:, 1] - draws[:, 0]) / count, [0.025, 0.975])
    p = mcnemar(only_a, only_b)
    difference = right_b.mean() - right_a.mean()
    verdict = "no difference shown" if p >= 0.05 else f"{second if difference > 0 else first} is better"
    return {
        "A": f"{right_a.mean():.2%} right: {first}",
        "B": f"{right_b.mean():.2%} right: {second}",
        "B - A": f"{100 * difference:+.2f} points, 95% interval {100 * low:+.2f} … {100 * high:+.2f} (bootstrap)",
        "only A right": f"{only_a:,} of {count:,} images",
        "only B right": f"{only_b:,}",
        "McNemar": f"p = {p:.2g}, exact: {verdict}",
    }


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p of so unequal a share, if each image were as likely to be answered rightly by one as by the other."""
    count = only_a + only_b
    tail = sum(math.comb(count, successes) for successes in range(min(only_a, only_b) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**count)))


def answers_of(folder: Path) -> "Answers":
    from cifar_resnet.answers import FILE, Answers

    path = folder if folder.suffix == ".npz" else folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"no {FILE} in {folder}; cifar-evaluate checkpoint={folder} leaves one")
    try:
        return Answers.load(path)
    except Exception as error:  # a damaged archive may raise anything
        raise ValueError(f"not readable: {path} ({type(error).__name__}); cifar-evaluate makes a new one") from error


if __name__ == "__main__":
    sys.exit(main())
