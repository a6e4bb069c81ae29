"""cifar-report: all finished runs as tables and curves, or two of them compared on the same test images.

cifar-report "outputs/train/<sweep folder>" pivot=[model.depth,optimizer.lr]
cifar-report compare "outputs/train/<run folder>" "outputs/train/<run folder>"
"""

import contextlib
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from cifar_resnet import constraints, runs, terminal
from cifar_resnet.compose import Job
from cifar_resnet.errors import UsageError, one_line, refuse_if
from cifar_resnet.results import found, ood, overview, page, plots
from cifar_resnet.results.comparison import comparison
from cifar_resnet.results.found import Groups, Run
from cifar_resnet.results.intervals import Summary, ends
from cifar_resnet.results.overview import metric_of, page_of, pivoted, short, summary_of
from cifar_resnet.results.page import Link, Section

NOTE = (
    "Accuracies: mean ± standard deviation over n runs. 95% interval: of their mean, by Student's t; where there is "
    "one run, or all scored the same, Wilson's of a share of the test images; within 0 and 100%. Tested was the epoch "
    "that did best on validation images, or in training if that was monitored, or the last one. Ensembles predict by "
    "their members' mean probability; their loss and expected calibration error (ECE) stand as they are and at a "
    "temperature fitted on validation images. Data sets of one name have beside it what tells them apart: images "
    "trained on + held out, their folder, or a hash."
)
EVALUATION = "evaluation.json"  # what cifar-evaluate leaves
PAGE, HTML, PICTURE, TITLE = "report.md", "report.html", "curves.png", "# Runs\n"
TABLES = ("Pivot", "Groups", "Runs", "Ensembles", "Holding up")


@dataclass
class Column:
    """title, cells: for people. plain: the same for programs, by its name in the CSV, numbers as such."""

    title: str
    cells: list[str]
    plain: Mapping[str, Sequence[object]]


@dataclass
class Table:
    """rows: for people, the head first; plain: of the CSV."""

    rows: list[list[str]]
    plain: Sequence[Sequence[object]]


Curves = dict[str, list[list[dict[str, str]]]]  # by the group's name, for each of its runs the rows of its metrics.csv


def run(jobs: list[Job]) -> int:
    (job,) = jobs
    if job.words[:1] == ["compare"]:
        terminal.log.info(terminal.listed(comparison(job.words[1:], job.cfg.resamples, job.cfg.seed)))
    else:
        report(list(map(Path, job.words or job.cfg.runs)), job.cfg)
    return 0


def report(folders: Sequence[Path], cfg: DictConfig) -> None:
    everything, skipped = found.find(folders)
    folder = Path(cfg.output)
    check_output(folder)
    check_settings(cfg, everything)
    counted = [member for member in everything if not member.repeats]
    if cfg.metric:
        overview.check_metric(cfg.metric, counted)
    keys = found.on_one_data_set(counted, cfg.by) if cfg.by else found.differences(counted)
    groups = found.group(counted, keys)
    ensembles, shifts, no_evaluations = evaluation_tables(folders)
    curves, no_curves = curves_of(groups, keys)
    tables = {
        "Pivot": pivot_table(counted, cfg),
        "Groups": group_table(groups, keys, everything),
        "Runs": run_table(everything, groups, keys, folder),
        "Ensembles": ensembles,
        "Holding up": shifts,
    }
    notes = [f"skipped: {reason}" for reason in (*skipped, *no_evaluations, *no_curves)]
    if overview.are_numbered(keys) and (usual := overview.other_settings(groups, keys)[1]):
        notes.append(f"all groups, but for what stands beside one: {usual}")
    notes += parts_in(everything)
    if repeats := len(everything) - len(counted):
        notes.append(f"{repeats} of {len(everything)} runs repeat another's settings, seed and data, and count once")
    write(folder, tables, curves, notes, overview.sections(groups, keys, cfg, counted, folder))
    for name, table in tables.items():
        if table and (name != "Runs" or len(everything) != len(groups)):
            terminal.print_table(without_other_settings(table.rows))
    for note in [*said_below(tables["Groups"].rows), *notes]:
        terminal.log.warning(f"  {note}\n")
    terminal.log.info(terminal.listed({"report": folder / PAGE, "page": folder / HTML}))


def without_other_settings(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """A terminal has no room for such a column."""
    return [[cell for title, cell in zip(rows[0], row, strict=True) if title != overview.OTHERS] for row in rows]


def said_below(rows: Sequence[Sequence[str]]) -> list[str]:
    """The same column as lines."""
    if overview.OTHERS not in rows[0]:
        return []
    place = list(rows[0]).index(overview.OTHERS)
    lines = [f"    group {row[0]}: {row[place]}" for row in rows[1:] if row[place]]
    return ["\n".join([overview.OTHERS, *lines])] if lines else []


def check_settings(cfg: DictConfig, members: Sequence[Run]) -> None:
    """UsageError for a setting that no run has; a last name, such as depth, becomes the whole, where that is clear."""
    all_keys = dict.fromkeys(key for member in members for key in found.leaves(member.record["config"]))
    known = [key for key in all_keys if any(member.setting(key) for member in members)]
    for name in ("by", "pivot"):
        whole = []
        for key in cfg[name] or ():
            meant = [each for each in known if each.endswith(f".{key}")]
            is_one = any(member.setting(key) for member in members)
            refuse_if(
                not is_one and len(meant) != 1,
                f"no run has the setting {key}. Got {name}=[{','.join(cfg[name])}]"
                + (f"; give {' or '.join(meant[:4])}" if meant else constraints.did_you_mean(key, known)),
            )
            whole.append(key if is_one else meant[0])
        refuse_if(
            name == "pivot" and whole and (len(whole), len(set(whole))) != (2, 2),
            f"a pivot has rows and columns. Got pivot=[{','.join(cfg.pivot or ())}]; give two settings",
        )
        if whole:
            cfg[name] = list(dict.fromkeys(whole))


def same(title: str, cells: Sequence[object]) -> Column:
    """For people and programs alike."""
    return Column(title, [cell if isinstance(cell, str) else str(cell) for cell in cells], {title: cells})


def accuracy(title: str, metric: str, groups: Sequence[Sequence[Run]]) -> Column:
    """A metric's mean and deviation over the runs of each group that have it."""
    each = [summary_of(metric, members) for members in groups]
    cells = [
        one.spread() + (f" ({one.n} of {len(members)})" if 0 < one.n < len(members) else "")
        for one, members in zip(each, groups, strict=True)
    ]
    names = [f"{metric.replace('/', '_')}_{name}" for name in Summary.NAMES]
    return Column(title, cells, dict(zip(names, zip(*(one.plain() for one in each), strict=True), strict=True)))


def group_table(groups: Groups, keys: Sequence[str], everything: Sequence[Run]) -> Table:
    """A row for each group."""
    each = list(groups.values())
    records = [[member.record for member in members] for members in each]
    repeats = [sum(run.repeats is member for run in everything for member in members) for members in each]
    sizes = [sorted(record["parameters"] for record in found) for found in records]
    seconds = [statistics.fmean(record["train_seconds"] for record in found) for found in records]
    tested = [", ".join(sorted({record["selected"].partition(" ")[0] for record in found})) for found in records]
    is_numbered, own = overview.are_numbered(keys), overview.own_columns(groups, keys)
    numbers = [same("group", list(overview.numbers_of(groups).values()))] if is_numbered else []
    settings = [
        Column(name, list(values) if key in own else [], {name: values})
        for key, name, values in zip(keys, short(keys), zip(*groups, strict=True), strict=True)
    ]
    return as_table(
        *numbers,
        *(settings or [same("network", [found[0]["network"] for found in records])]),
        Column(overview.OTHERS, overview.other_settings(groups, keys)[0] if is_numbered else [], {}),
        same("n", [len(members) for members in each]),
        Column("repeats", list(map(str, repeats)) if any(repeats) else [], {"repeats": repeats}),
        accuracy("validation", "val/acc", each),
        accuracy("test", "test/acc", each),
        Column("95% interval", [summary_of("test/acc", members).ends() for members in each], {}),
        Column(
            "parameters",
            [" … ".join(f"{size:,}" for size in sorted({found[0], found[-1]})) for found in sizes],
            {"parameters_min": [found[0] for found in sizes], "parameters_max": [found[-1] for found in sizes]},
        ),
        Column("time", list(map(terminal.duration, seconds)), {"seconds": seconds}),
        Column("tested epoch", tested, {"tested_epoch": tested}),  # best, or last
    )


def run_table(members: Sequence[Run], groups: Groups, keys: Sequence[str], folder: Path) -> Table:
    """A row for each run, those as well that do not count. folder: that the report will lie in."""
    numbers = overview.numbers_of(groups)
    is_numbered = overview.are_numbered(keys)
    # a repeat may have another name for the same network
    found_in = [numbers[tuple(map((member.repeats or member).setting, keys))] for member in members]
    records = [member.record for member in members]
    validation, test = ([summary_of(name, [member]) for member in members] for name in ("val/acc", "test/acc"))
    ends = {"test_acc_low": [one.low for one in test], "test_acc_high": [one.high for one in test]}
    epochs, seconds = [record["epoch"] for record in records], [record["train_seconds"] for record in records]
    originals = [str(member.repeats.folder) if member.repeats else "" for member in members]
    return as_table(
        same("run", [Link(str(member.folder), page_of(member, folder)) for member in members]),
        *([same("group", found_in)] if is_numbered else []),
        *(
            Column(name, [] if is_numbered else values, {name: values})
            for key, name in zip(keys, short(keys), strict=True)
            for values in [[member.setting(key) for member in members]]
        ),
        same("seed", [member.setting("seed") for member in members]),
        Column("validation", [one.spread() for one in validation], {"val_acc": [one.mean for one in validation]}),
        Column("test", [one.spread() for one in test], {"test_acc": [one.mean for one in test]} | ends),
        Column("", [], {"num_tested": [record.get("num_tested") for record in records]}),
        Column(
            "epoch",
            [f"{record['epoch']:g} of {record['epochs']:g}" for record in records],
            {"epoch": epochs, "epochs": [record["epochs"] for record in records]},
        ),
        Column("time", list(map(terminal.duration, seconds)), {"seconds": seconds}),
        same("device", [record["device"] for record in records]),
        Column("repeats", originals if any(originals) else [], {"repeats": originals}),
    )


Rows = list[list[str]]  # for people; beside it the same for programs
ENSEMBLES = {
    "best member": ("best_member_acc", ".2%"),
    "test": ("test_acc", ".2%"),
    "loss": ("loss", ".4f"),
    "calibrated loss": ("calibrated_loss", ".4f"),
    "ECE": ("ece", ".2%"),
    "calibrated ECE": ("calibrated_ece", ".2%"),
}


def evaluation_tables(folders: Sequence[Path]) -> tuple[Table | None, Table | None, list[str]]:
    """Of what cifar-evaluate has left a row for each ensemble, and one for each measure of how networks hold up, None
    where there is none; and what was no evaluation, and why."""
    ensembles: tuple[Rows, list] = [], []
    shifts: tuple[Rows, list] = [], []
    skipped = []
    for path in found.files_in(folders, EVALUATION):
        try:
            result = json.loads(path.read_text())
            if later := trained_since(result):
                skipped.append(f"of weights that are there no more. Got {path}, and {later} was trained on since")
                continue
            about = [str(path.parent), str(result.get("data")), str(len(result["members"]))]
            own = [in_both(about, row) for row in ([ensemble_row(result)] if len(result["members"]) > 1 else [])]
            others = [in_both([*about, measure], row) for measure, row in shift_rows(result)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            skipped.append(f"not what cifar-evaluate leaves. Got {path} ({type(error).__name__}: {one_line(error)})")
        else:
            for (rows, plain), each in ((ensembles, own), (shifts, others)):
                rows += [for_people for for_people, _ in each]
                plain += [for_programs for _, for_programs in each]
    head = ["ensemble", "data", "members"]
    names = [name for name, _ in ENSEMBLES.values()]
    of_ensembles = Table([[*head, *ENSEMBLES], *ensembles[0]], [[*head, *names], *ensembles[1]])
    of_shifts = Table([[*SHIFTS, "value", "95% interval"], *shifts[0]], [[*SHIFTS, "value", "low", "high"], *shifts[1]])
    return of_ensembles if ensembles[0] else None, of_shifts if shifts[0] else None, skipped


def trained_since(result: dict) -> str | None:
    """Which of an evaluation's runs has weights of another step by now; None for none that is known to have."""
    for checkpoint, step in zip(result.get("checkpoints", ()), result.get("steps", ()), strict=False):
        run_dir = runs.run_dir_of(Path(checkpoint))
        with contextlib.suppress(UsageError, FileNotFoundError):  # a damaged run is told of elsewhere
            record = runs.read_record(run_dir) if run_dir else None
            is_runs_choice = record and runs.find_checkpoint(run_dir).resolve() == Path(checkpoint).resolve()
            if is_runs_choice and record.get("step", step) != step:
                return checkpoint
    return None


SHIFTS = ["evaluation", "data", "members", "measure"]


def in_both(about: Sequence[str], row: tuple[list[str], list]) -> tuple[list[str], list]:
    """A row for people, and for programs."""
    return [*about, *row[0]], [*about, *row[1]]


def ensemble_row(result: dict) -> tuple[list[str], list]:
    scores, calibrated = result["scores"], result["calibrated"] or {}
    values = [max(member["acc"] for member in result["members"]), scores["acc"]]
    values += [each.get(key) for key in ("loss", "calibration_error") for each in (scores, calibrated)]
    forms = [form for _, form in ENSEMBLES.values()]
    return ["" if of is None else f"{of:{form}}" for of, form in zip(values, forms, strict=True)], values


def shift_rows(result: dict) -> Iterator[tuple[str, tuple[list[str], list]]]:
    """How it held up, where that was asked: what was measured, with its value and interval for people and programs."""
    num_images = f"{result.get('num_images', 0):,} images"
    if corruptions := result.get("corruptions"):
        under = f", {len(corruptions['each'])} conditions, {num_images}"
        yield f"mean corruption accuracy{under}", with_ends(corruptions, "mean_acc")
        if "clean_acc" in corruptions:
            yield f"uncorrupted, the same {num_images}", with_ends(corruptions, "clean_acc")
        if "benchmark_acc" in corruptions:
            yield f"of the benchmark's fifteen, {num_images}", with_ends(corruptions, "benchmark_acc")
    if votes := result.get("votes"):
        yield "cross-entropy to people's votes", with_ends(votes, "cross_entropy", ".4f")
    if result.get("own_test_images") is False and "intervals" in result:
        own = {"acc": result["scores"]["acc"], "acc_interval": result["intervals"]["acc"]}
        yield f"accuracy, {num_images}", with_ends(own, "acc")
    for name, each in (result.get("ood") or {}).items():
        for key, score in ood.SCORES.items():
            if of := each["scores"].get(key):
                yield f"AUROC against {name}, {score}", with_ends(of, "auroc")
                yield f"FPR at 95% against {name}, {score}", with_ends(of, "fpr_at_95")


def with_ends(of: dict, key: str, form: str = ".2%") -> tuple[list[str], list]:
    low, high = of[f"{key}_interval"]
    return [f"{of[key]:{form}}", ends((low, high), form)], [of[key], low, high]


def pivot_table(members: Sequence[Run], cfg: DictConfig) -> Table | None:
    """Means by one setting's values, a row for each, and by the other's, a column for each; None without `pivot`.

    For programs a row for each of these.
    """
    if not cfg.pivot:
        return None
    pivot = pivoted(members, cfg.pivot, metric_of(members, cfg))
    form = ".2%" if pivot.metric.endswith("/acc") else ".4g"
    *of_rows, of_columns = pivot.names
    rows = [
        [
            ", ".join(row),
            *(
                pivot.groups[*row, column].spread(form) if (*row, column) in pivot.groups else ""
                for column in pivot.columns
            ),
        ]
        for row in pivot.rows
    ]
    return Table(
        [[f"{pivot.metric}, {', '.join(of_rows)} by {of_columns}", *pivot.columns], *rows],
        [[*pivot.names, *Summary.NAMES], *([*values, *each.plain()] for values, each in pivot.groups.items())],
    )


def curves_of(groups: Groups, keys: Sequence[str]) -> tuple[Curves, list[str]]:
    """Of the groups in which an epoch has ended, named by their settings; and why a run has none that can be read."""
    curves: Curves = {}
    damaged = []
    labels = overview.labels_of(groups, keys)
    for values, members in groups.items():
        name = labels[values]
        for member in members:
            try:
                if rows := runs.read_metrics(member.folder / runs.METRICS):
                    curves.setdefault(name, []).append(rows)
            except UsageError as error:
                damaged.append(str(error))
    refuse_if(damaged and not curves, "".join(damaged[:1]))
    return curves, damaged


def parts_in(found: Sequence[Run]) -> list[str]:
    """Which of these runs were validated or tested on a part of the images."""
    seen = {
        member.folder: [text for split in ("val", "test") if (text := terminal.part(member.record, split))]
        for member in found
    }
    return [f"{folder}: scores of {' and '.join(texts)}" for folder, texts in seen.items() if texts]


def check_output(folder: Path) -> None:
    """UsageError where a report would take the place of what is none."""
    page = folder / PAGE
    is_report = page.is_file() and page.read_bytes().startswith(TITLE.encode())
    others = [name for name in (PAGE, HTML, PICTURE, *map(csv_name, TABLES)) if (folder / name).exists()]
    refuse_if(
        others and not is_report,
        f"output is a folder of its own. Got {folder}, where {', '.join(others)} is not of a report; give another one",
    )


def csv_name(table: str) -> str:
    return f"{table.lower().replace(' ', '_')}.csv"


def write(
    folder: Path, tables: dict[str, Table | None], curves: Curves, notes: Sequence[str], figures: Sequence[Section]
) -> None:
    """All tables on a page and each by itself, and a picture; what is empty leaves none, not even an earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [NOTE, *(f"* {terminal.in_markdown(note)}" for note in notes)]
    parts += [f"## {name}\n\n{terminal.markdown_table(table.rows)}" for name, table in tables.items() if table]
    parts += [f"![curves]({PICTURE})"] * bool(curves)
    runs.write_atomically(folder / PAGE, "\n".join([TITLE, *(f"{part.rstrip()}\n" for part in parts)]))
    for name, table in tables.items():
        (folder / csv_name(name)).unlink(missing_ok=True)
        if table:
            runs.write_table(folder / csv_name(name), table.plain)
    (folder / PICTURE).unlink(missing_ok=True)
    shown = list(figures)
    if curves:
        plots.save_figure(folder / PICTURE, plots.runs_figure(curves))
        shown.append(Section("Curves", panels=plots.runs_panels(curves), name="curves"))
    shown += [Section(name, table=table.rows) for name, table in tables.items() if table]
    shown += [Section("How to read this", " ".join([NOTE, *(f"Note: {note}." for note in notes)]))]
    page.write(folder / HTML, "Runs", {}, shown)


def as_table(*columns: Column) -> Table:
    """A column without cells is for programs alone."""
    for_people = [[column.title, *column.cells] for column in columns if column.cells]
    plain = [[name, *values] for column in columns for name, values in column.plain.items()]
    return Table(*(list(map(list, zip(*each, strict=True))) for each in (for_people, plain)))
