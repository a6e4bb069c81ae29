"""cifar-report: all finished runs as tables and curves, or two of them compared on the same test images.

cifar-report outputs/train/<sweep folder> pivot=[model.depth,optimizer.lr]
cifar-report compare outputs/train/<run folder> outputs/train/<run folder>
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from scipy import stats

from cifar_resnet import constraints, runs, terminal
from cifar_resnet.compose import Job
from cifar_resnet.errors import refuse_if
from cifar_resnet.quoting import command_line
from cifar_resnet.results import plots
from cifar_resnet.results.predictions import FILE, Predictions

NOTE = (
    "Accuracies: mean ± standard deviation over n runs; 95% interval of the mean by Student's t. Tested was the epoch "
    "that did best on validation images, or the last one. Ensembles predict by their members' mean probability; their "
    "loss and expected calibration error (ECE) stand as they are and at a temperature fitted on validation images."
)
IN_A_RECORD: dict[str, object] = {
    **dict.fromkeys(("parameters", "train_seconds", "epoch", "epochs"), float),
    **dict.fromkeys(("network", "selected", "device"), str),
    "config.overrides": list[str],
    "config.choices": dict,
}
EVALUATION = "evaluation.json"  # what cifar-evaluate leaves
PICTURE = "curves.png"
NOT_A_DIFFERENCE = ("seed", "name", "run_dir", "output_dir", "resume", "page", "data.root", "trainer.accelerator")


@dataclass
class Run:
    folder: Path
    record: dict

    def setting(self, key: str) -> str:
        """Its value of a setting, such as optimizer.lr, or of a group, such as model; empty where it has none."""
        config = self.record["config"]
        return str(config["choices"].get(key, constraints.value_at(config, key, default="")))


Rows = list[list[str]]  # of a table, its head first
Curves = dict[str, list[list[dict[str, str]]]]  # by the group's name, for each of its runs the rows of its metrics.csv
Groups = dict[tuple[str, ...], list[Run]]  # by the values of the settings that tell them apart


def run(jobs: list[Job]) -> int:
    (job,) = jobs
    if job.words[:1] == ["compare"]:
        terminal.log.info(terminal.listed(comparison(job.words[1:], job.cfg.resamples, job.cfg.seed)))
    else:
        report(list(map(Path, job.words or job.cfg.runs)), job.cfg)
    return 0


def report(folders: Sequence[Path], cfg: DictConfig) -> None:
    found = find(folders)
    check_settings(cfg, found)
    keys = cfg.by or differences(found)
    groups = group(found, keys)
    tables = {
        "Pivot": pivot_rows(found, cfg),
        "Groups": group_rows(groups, keys),
        "Runs": run_rows(found, keys),
        "Ensembles": ensemble_rows(folders),
    }
    curves = curves_of(groups, short(keys))
    folder = Path(cfg.output)
    write(folder, tables, curves)
    for name, rows in tables.items():
        if rows and (name != "Runs" or len(found) != len(groups)):
            terminal.print_table(rows)
    terminal.log.info(
        terminal.listed({"report": folder / "report.md"} | ({"pictures": folder / PICTURE} if curves else {}))
    )


def find(folders: Sequence[Path]) -> list[Run]:
    """Every finished run in these folders, by name."""
    for folder in folders:
        refuse_if(not folder.is_dir(), f"runs are looked for in folders. Got {folder}, which is none")
    found = [Run(path.parent, read(path)) for path in files_in(folders, runs.RECORD)]
    refuse_if(not found, f"no finished run. Got {', '.join(map(str, folders))}; train one with cifar-train")
    return found


def files_in(folders: Sequence[Path], name: str) -> list[Path]:
    """Every file of this name, each once, folder by folder in the order of their names."""
    found = [path for folder in folders for path in sorted(folder.rglob(name), key=runs.natural)]
    return list({path.parent.resolve(): path for path in found}.values())


def read(path: Path) -> dict:
    """A run's record, whose values are of the kinds that the tables rely on."""
    record = runs.read_record(path.parent)
    hints = IN_A_RECORD | {f"metrics.{name}": float for name in record["metrics"] if name.endswith("/acc")}
    for key, hint in hints.items():
        refuse_if(
            complaint := constraints.complaint_about(key, constraints.value_at(record, key), hint),
            f"not the record of a run. Got {path}, in which {complaint}",
        )
    return record


def check_settings(cfg: DictConfig, found: Sequence[Run]) -> None:
    for name in ("by", "pivot"):
        for key in cfg[name] or ():
            refuse_if(
                not any(member.setting(key) for member in found),
                f"no run has the setting {key}. Got {name}={list(cfg[name])}",
            )


def differences(found: Sequence[Run]) -> list[str]:
    """Settings that commands gave and that tell these runs apart, leaving out what those before already tell."""
    given = [text.lstrip("+~").partition("=")[0] for run in found for text in run.record["config"]["overrides"]]
    keys: list[str] = []
    for key in dict.fromkeys(["data", "model", *given]):
        if key not in NOT_A_DIFFERENCE and len(group(found, [*keys, key])) > len(group(found, keys)):
            keys.append(key)
    return keys


def group(found: Sequence[Run], keys: Sequence[str]) -> Groups:
    """Runs that differ in nothing but what does not count, such as the seed; numbers in their order."""
    groups: Groups = {}
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
        return math.inf, value


def values_of(metric: str, members: Sequence[Run]) -> list[float]:
    """Of the runs that have this metric."""
    return [value for member in members if (value := member.record["metrics"].get(metric)) is not None]


def summarised(values: Sequence[float]) -> tuple[str, str]:
    """Mean with standard deviation, and the mean's 95% interval by Student's t; for accuracies in [0, 1]."""
    if len(values) < 2:
        return "".join(f"{value:.2%}" for value in values), ""
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    reach = stats.t.ppf(0.975, len(values) - 1) * deviation / len(values) ** 0.5
    return f"{mean:.2%} ± {deviation:.2%}", f"{mean - reach:.2%} … {mean + reach:.2%}"


def group_rows(groups: Groups, keys: Sequence[str]) -> Rows:
    """A head, and a row for each group."""
    rows = [
        [
            *(values or [members[0].record["network"]]),
            str(len(members)),
            summarised(values_of("val/acc", members))[0],
            *summarised(values_of("test/acc", members)),
            span([member.record["parameters"] for member in members]),
            terminal.duration(statistics.mean(member.record["train_seconds"] for member in members)),
            ", ".join(sorted({member.record["selected"].partition(" ")[0] for member in members})),  # best, or last
        ]
        for values, members in groups.items()
    ]
    titles = ["n", "validation", "test", "95% of the mean", "parameters", "time", "tested epoch"]
    return [[*(short(keys) or ["network"]), *titles], *rows]


def span(sizes: Sequence[int]) -> str:
    """The least and the greatest, or the one that all are."""
    return " … ".join(f"{size:,}" for size in sorted({min(sizes), max(sizes)}))


def run_rows(found: Sequence[Run], keys: Sequence[str]) -> Rows:
    """A head, and a row for each run."""
    rows = [
        [
            str(member.folder),
            *(member.setting(key) for key in (*keys, "seed")),
            *(summarised(values_of(metric, [member]))[0] for metric in ("val/acc", "test/acc")),
            *(str(member.record[key]) for key in ("epoch", "epochs")),
            terminal.duration(member.record["train_seconds"]),
            member.record["device"],
        ]
        for member in found
    ]
    return [["run", *short(keys), "seed", "validation", "test", "epoch", "of", "time", "device"], *rows]


def ensemble_rows(folders: Sequence[Path]) -> Rows:
    """A head, and a row for each ensemble that cifar-evaluate has evaluated; nothing where there is none."""
    rows = []
    for path in files_in(folders, EVALUATION):
        try:
            result = json.loads(path.read_text())
            members, scores, calibrated = result["members"], result["scores"], result["calibrated"]
            row = [
                str(path.parent),
                result["data"],
                str(len(members)),
                f"{max(member['acc'] for member in members):.2%}",
                f"{scores['acc']:.2%}",
                *(f"{each['loss']:.4f}" if each else "" for each in (scores, calibrated)),
                *(f"{each['calibration_error']:.2%}" if each else "" for each in (scores, calibrated)),
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"not what cifar-evaluate leaves. Got {path} ({type(error).__name__}: {error})") from error
        if len(members) > 1:
            rows.append(row)
    head = ["ensemble", "data", "members", "best member", "test", "loss", "calibrated", "ECE", "calibrated"]
    return [head, *rows] if rows else []


def pivot_rows(found: Sequence[Run], cfg: DictConfig) -> Rows:
    """A head with one setting's values, and for each value of the other a row of means; nothing without `pivot`."""
    if not cfg.pivot:
        return []
    refuse_if(len(cfg.pivot) != 2, f"a pivot has rows and columns. Got pivot={list(cfg.pivot)}; give two settings")
    metric = cfg.metric or ("test/acc" if len(values_of("test/acc", found)) == len(found) else "val/acc")
    known = ", ".join(sorted({name for member in found for name in member.record["metrics"]}))
    refuse_if(not values_of(metric, found), f"no run has the metric {metric}. Got metric={metric}; give {known}")
    cells = {key: values_of(metric, members) for key, members in group(found, cfg.pivot).items()}
    down, across = (sorted({key[axis] for key in cells}, key=in_order) for axis in (0, 1))

    def cell(values: Sequence[float]) -> str:
        mean = f"{statistics.mean(values):.4g}" if values else ""
        return summarised(values)[0] if metric.endswith("acc") else mean

    rows = [[row, *(cell(cells.get((row, column), [])) for column in across)] for row in down]
    return [[f"{metric}, {' by '.join(short(cfg.pivot))}", *across], *rows]


def curves_of(groups: Groups, keys: Sequence[str]) -> Curves:
    """Of the groups in which an epoch has ended, named by their settings."""
    curves = {
        ", ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True) if value) or "runs": [
            rows for member in members if (rows := runs.read_metrics(member.folder / runs.METRICS))
        ]
        for values, members in groups.items()
    }
    return {name: members for name, members in curves.items() if members}


def write(folder: Path, tables: dict[str, Rows], curves: Curves) -> None:
    """All tables on one page and each by itself, and a picture; what is empty leaves none, not even an earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"## {name}\n\n{markdown(rows)}" for name, rows in tables.items() if rows]
    picture = f"\n![curves]({PICTURE})\n" if curves else ""
    runs.write_atomically(folder / "report.md", f"# Runs\n\n{NOTE}\n\n" + "\n".join(parts) + picture)
    for name, rows in tables.items():
        (folder / f"{name.lower()}.csv").unlink(missing_ok=True)
        if rows:
            runs.write_table(folder / f"{name.lower()}.csv", rows)
    (folder / PICTURE).unlink(missing_ok=True)
    if curves:
        plots.save_figure(folder / PICTURE, plots.runs_figure(curves))


def markdown(rows: Rows) -> str:
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def comparison(pair: Sequence[str], resamples: int, seed: int) -> dict[str, str]:
    """Whether one of two runs is better, on the same test images.

    McNemar's exact test on those that only one of them predicts rightly: how likely so unequal a share is, if either
    were as likely to be that one. The bootstrap draws the images anew.
    """
    refuse_if(len(pair) != 2, f"compare needs two run folders. Got {len(pair)}; give cifar-report compare A B")
    first, second = map(Path, pair)
    a, b = predictions_of(first), predictions_of(second)
    refuse_if(
        a.images_hash != b.images_hash or not np.array_equal(a.labels, b.labels),
        f"a comparison needs the same test images. Got {first} and {second}, which differ in them",
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
    return {
        "A": f"{right_a.mean():.2%} right: {first}",
        "B": f"{right_b.mean():.2%} right: {second}",
        "B - A": f"{100 * difference:+.2f} points, 95% interval {100 * low:+.2f} … {100 * high:+.2f} (bootstrap)",
        "only A right": f"{only_a:,} of {count:,} images",
        "only B right": f"{only_b:,}",
        "McNemar": f"p = {p:.2g}, exact: {verdict}",
    }


def predictions_of(folder: Path) -> Predictions:
    path = folder if folder.suffix == ".npz" else folder / FILE
    refuse_if(
        not path.is_file(),
        f"no {FILE} in {folder}; {command_line('cifar-evaluate', f'checkpoint={folder}')} leaves one",
    )
    try:
        return Predictions.load(path)
    except Exception as error:  # a damaged archive may raise anything
        raise ValueError(f"not readable: {path} ({type(error).__name__}); cifar-evaluate makes a new one") from error
