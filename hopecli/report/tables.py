"""Results as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text, TextType

from hopecli.config.explain import ValueRow
from hopecli.engine.results import DryRun, EvalResults, Interval, TrainSummary, ValidationRecord
from hopecli.errors import printable
from hopecli.report.console import counted

ROW_TITLES = {
    "model": "model",
    "copy_last": "copy-last",
    "zero_action": "zero action",
    "shuffled_action": "shuffled action",
}

_PLAIN: dict[str, Any] = {"box": box.SIMPLE, "title_justify": "left", "pad_edge": False, "collapse_padding": True}


class _Continued(Table):
    """A table whose columns go on below, beside the first `labels` columns again, where the terminal is too narrow."""

    def __init__(self, title: TextType | None, *, labels: int):
        super().__init__(title=title, **_PLAIN)
        self.labels = labels

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        first = self.labels
        if first == len(self.columns) or self._fits(self, console, options):
            yield from super().__rich_console__(console, options)
            return
        while first < len(self.columns):
            last = len(self.columns)
            while last > first + 1 and not self._fits(self._part(first, last), console, options):
                last -= 1
            yield self._part(first, last)
            first = last

    def _part(self, first: int, last: int) -> Table:
        part = Table(title=self.title if first == self.labels else None, **_PLAIN)
        shown = [*self.columns[: self.labels], *self.columns[first:last]]
        for column in shown:
            no_wrap = column.no_wrap and last > first + 1
            part.add_column(column.header, justify=column.justify, overflow="fold", no_wrap=no_wrap)
        for row in zip(*(column.cells for column in shown), strict=True):
            part.add_row(*row)
        return part

    def _fits(self, table: Table, console: Console, options: ConsoleOptions) -> bool:
        """Whether all numbers fit beside labels that may be broken between words."""
        unlimited = options.update(max_width=10_000)
        width = Table.__rich_measure__(table, console, unlimited).maximum
        for column in self.columns[: self.labels]:
            sizes = [Measurement.get(console, unlimited, cell) for cell in column.cells]
            width -= max((x.maximum for x in sizes), default=0) - max((x.minimum for x in sizes), default=0)
        return width <= options.max_width


# Titles and cells are Text, never markup, and without escape sequences: paths and names may hold either.
def text_of(value: str, style: str = "") -> Text:
    """A title or cell."""
    return Text(printable(value), style=style)


def _title(title: str) -> Text:
    return text_of(title, "table.title")


def pairs_table(title: str, rows: Mapping[str, Any]) -> Table:
    """Two columns: what and value."""
    table = Table(title=_title(title), box=box.SIMPLE, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(text_of(key), text_of("not measured" if value is None else str(value)))
    return table


def plain_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int = 1) -> Table:
    """A table whose columns from `numbers_from` on are right-aligned and, where they do not fit, continued below."""
    table = _Continued(_title(title), labels=numbers_from)
    for i, column in enumerate(columns):
        number = i >= numbers_from
        table.add_column(text_of(column), justify="right" if number else "left", overflow="fold", no_wrap=number)
    for row in rows:
        table.add_row(*map(text_of, row))
    return table


def train_tables(summary: TrainSummary) -> list[Table]:
    """The end of a training run."""
    tables = [
        pairs_table(
            "Training",
            {
                "run": summary.run_dir,
                "model": f"{summary.model}, {summary.parameters / 1e6:.2f} M parameters",
                "device": f"{summary.device}, {summary.precision}",
                "steps": f"{summary.steps} in {counted(summary.epochs, 'epoch')}",
                "clips": f"{summary.train_clips} training, {summary.held_out_clips} held out"
                + (f", {summary.skipped_clips} skipped" if summary.skipped_clips else ""),
                "time": f"{summary.seconds:.0f} s in all" + _rate(summary.clips_per_second),
                "last loss": number(summary.loss),
            },
        )
    ]
    if summary.validation is not None:
        tables.append(validation_table(summary.validation))
    return tables


def _rate(clips_per_second: float | None) -> str:
    return "" if clips_per_second is None else f", {clips_per_second:.3g} clips/s in training"


def validation_table(record: ValidationRecord) -> Table:
    """Rollout loss per horizon beside copy-last."""
    horizon = len(record.rollout_per_horizon)
    rows = [
        ["model", number(record.loss_rollout), *map(number, record.rollout_per_horizon)],
        ["copy-last", number(record.copy_last), *map(number, record.copy_last_per_horizon)],
    ]
    if record.copy_last > 0:
        ratios = [
            number(a / b if b else None)
            for a, b in zip(record.rollout_per_horizon, record.copy_last_per_horizon, strict=True)
        ]
        rows.append(["ratio", number(record.loss_rollout / record.copy_last), *ratios])
    title = f"Held-out rollout L1 after epoch {record.epoch + 1} ({counted(record.clips, 'clip')})"
    return plain_table(title, ["", "mean", *(f"+{h}" for h in range(1, horizon + 1))], rows)


def eval_tables(results: EvalResults) -> list[Table]:
    """L1 per horizon, then the means over horizons with intervals and the other measures."""
    horizon = range(1, results.T_rollout + 1)
    sizes = f"{counted(results.clips, 'clip')} ({results.clips_from})"
    title = f"Rollout L1, {sizes}, {counted(results.context_frames, 'context frame')}"
    l1 = plain_table(
        title,
        ["", "mean", *(f"+{h}" for h in horizon)],
        (
            [ROW_TITLES.get(row.name, row.name), number(row.l1.mean), *(number(x.mean) for x in row.l1_per_horizon)]
            for row in results.rows
        ),
    )
    more = plain_table(
        "Means over horizons",
        ["", "L1 [95 %]", "/ copy-first", "mean of ratios [95 %]", "cosine", "error / signal"],
        (
            [
                ROW_TITLES.get(row.name, row.name),
                spread(row.l1),
                number(row.relative),
                "-" if row.relative_per_clip is None else spread(row.relative_per_clip),
                number(row.cosine.mean),
                number(row.error_to_signal),
            ]
            for row in results.rows
        ),
    )
    facts: dict[str, Any] = {
        "model / copy-last": number(results.ratio_to_copy_last),
        _teacher_title(results): None if results.loss_teacher is None else spread(results.loss_teacher),
    }
    if results.action_sensitivity is not None and results.action_sensitivity_relative is not None:
        share = round(100 * results.action_sensitivity_relative, 1)
        gap = f"{abs(share):.1f} % {'better' if share < 0 else 'worse'}"
        facts["action sensitivity"] = f"{spread(results.action_sensitivity)}, shuffled actions are {gap}"
    if results.overlap_with_training:
        facts["WARNING"] = f"{results.overlap_with_training} of these clips were seen in training or adaptation"
    if results.skipped_clips:
        facts["clips left out"] = f"{len(results.skipped_clips)} (results.json says why)"
    if results.step is not None:
        facts["trained for"] = f"{counted(results.step, 'step')}"
    if results.worst_clips:
        facts["worst clips"] = ", ".join(results.worst_clips)
    return [l1, more, pairs_table("", facts)]


def _teacher_title(results: EvalResults) -> str:
    """With the frames it is of: a run's validation takes those of objective.T_teacher."""
    return f"teacher-forced L1, frames 1 to {results.T_teacher}"


def preset_table(names: Mapping[str, str]) -> Table:
    """Preset names with their one-line descriptions."""
    return plain_table("Presets", ["name", "what"], ([k, v] for k, v in names.items()), numbers_from=2)


def value_table(name: str, rows: Iterable[ValueRow]) -> Table:
    """Every resolved value with its origin."""
    return plain_table(f"Preset {name}", ["key", "value", "from", "meaning"], ([*row] for row in rows), numbers_from=4)


def difference_table(a: str, b: str, changes: Mapping[str, tuple[str | None, str | None]]) -> Table:
    """Values that two presets do not share."""
    rows = ([key, left or "-", right or "-"] for key, (left, right) in changes.items())
    return plain_table(f"{a} against {b}", ["key", a, b], rows, numbers_from=3)


def number(value: float | None) -> str:
    """Four decimals, or a dash for what was not measured."""
    return "-" if value is None else f"{round(value, 4) + 0.0:.4f}"  # + 0.0: no "-0.0000"


def spread(value: Interval) -> str:
    """mean [low, high]."""
    if value.low is None or value.high is None:
        return number(value.mean)
    return f"{number(value.mean)} [{number(value.low)}, {number(value.high)}]"


def gib(count: float | None) -> str | None:
    """Bytes in GiB, with two decimals."""
    return None if count is None else f"{count / 2**30:.2f} GiB"


def dry_run_table(result: DryRun) -> Table:
    """Sizes, time and memory of a dry run."""
    counts = steps = None
    if result.train_clips is not None:
        counts = f": {result.train_clips} training, {result.held_out_clips} held out"
        steps = f"{result.steps_per_epoch} per epoch, {result.total_steps} in all"
    norm = "-" if result.grad_norm is None else f"{result.grad_norm:.3g}"
    return pairs_table(
        f"Dry run of {result.preset}",
        {
            "model": f"{result.model}, {result.parameters:,} parameters ({result.trainable:,} trainable)",
            "device": f"{result.device}, {result.precision}",
            "clips": f"{result.data}{counts or ''}",
            "batch": f"{result.global_batch} global, {result.micro_batch} per process and pass",
            "steps": steps,
            "forward and backward": f"{result.seconds:.2f} s on {counted(result.batch, 'clip')}, "
            f"loss {result.loss:.4f}, gradient norm {norm}",
            "weights, gradients, AdamW": gib(result.static_bytes),
            "activations per clip (measured)": gib(result.activation_bytes_per_clip),
            "memory estimate for this batch": gib(result.estimated_bytes),
        },
    )
