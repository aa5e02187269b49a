"""`hope tta` for people: live lines, tables, per_clip.csv and the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from hopecli.engine.results import Interval
from hopecli.engine.sink import StreamSink, close_all
from hopecli.engine.tta_results import SourceRecord, TtaClip, TtaProgress, TtaResults
from hopecli.report.console import counted, draws_bars, make_console
from hopecli.report.plots import new_figure, own_settings, save_figure
from hopecli.report.tables import number, pairs_table, plain_table, spread
from hopecli.report.wandb_sink import WandbSink

SHOWN_STEPS = 8  # losses of the per-step curve in the table


class ConsoleStream:
    """Shows a stream on stderr: a bar on a terminal, a line every `every` clips elsewhere."""

    def __init__(self, *, every: int):
        self.console, self.every = make_console(stderr=True), every
        self.progress: Progress | None = None
        self.task: TaskID | None = None

    def begin(self, *, done: int, total: int) -> None:
        if draws_bars(self.console):
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.task = self.progress.add_task("adapting", total=total, completed=done)
            self.progress.start()

    def clip(self, row: TtaClip, progress: TtaProgress) -> None:
        text = progress_line(progress)
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=progress.done, description=text)
        elif progress.done % self.every == 0 or progress.done == progress.total:
            self.message(f"clip {progress.done}/{progress.total}  {text}")

    def source(self, record: SourceRecord) -> None:
        self.message(f"source loss after {counted(record.clips, 'clip')} (order {record.order + 1}): {record.loss:.4f}")

    def message(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def progress_line(p: TtaProgress) -> str:
    """Trailing means, drift and what was skipped."""
    gain = f"{100 * (p.frozen - p.online) / p.frozen:+.2f} %" if p.frozen > 0 else "-"
    drift = "-" if p.drift is None else f"{p.drift:.2e}"
    mean = f"mean of last {p.window}: " if p.window > 1 else ""
    text = f"{mean}online {p.online:.4f}  frozen {p.frozen:.4f}  gain {gain}  drift {drift}"
    if p.steps_skipped or p.clips_skipped:
        text += f"  skipped {counted(p.steps_skipped, 'step')}, {counted(p.clips_skipped, 'clip')}"
    return text


class WandbStream:
    """Mirrors every clip."""

    def __init__(self, sink: WandbSink):
        self.sink, self.step = sink, 0

    def begin(self, *, done: int, total: int) -> None:
        self.step = done

    def clip(self, row: TtaClip, progress: TtaProgress) -> None:
        self.step = progress.done
        columns = {k: v for k, v in csv_row(row).items() if k != "clip" and v is not None}
        columns |= {"rolling_online": progress.online, "rolling_frozen": progress.frozen}
        self.sink.log({f"tta/{k}": v for k, v in columns.items()}, self.step)

    def source(self, record: SourceRecord) -> None:
        self.sink.log({"tta/source": record.loss}, self.step)

    def message(self, text: str) -> None: ...

    def close(self) -> None:
        self.sink.close()


class StreamFanout:
    """Sends every event to several sinks, in order."""

    def __init__(self, sinks: Sequence[StreamSink]):
        self.sinks = tuple(sinks)

    def begin(self, *, done: int, total: int) -> None:
        for sink in self.sinks:
            sink.begin(done=done, total=total)

    def clip(self, row: TtaClip, progress: TtaProgress) -> None:
        for sink in self.sinks:
            sink.clip(row, progress)

    def source(self, record: SourceRecord) -> None:
        for sink in self.sinks:
            sink.source(record)

    def message(self, text: str) -> None:
        for sink in self.sinks:
            sink.message(text)

    def close(self) -> None:
        close_all(self.sinks)


def csv_row(row: TtaClip) -> dict[str, Any]:
    """One line of per_clip.csv, in the order of the stream."""
    return {
        "order": row.order,
        "position": row.position,
        "clip": row.clip,
        "online": row.online,
        "frozen": row.frozen,
        "after_update": row.after_update,
        "gain": row.gain,
        "copy_last": row.copy_last,
        "periodic_reset": row.periodic_reset,
        "grad_norm": row.grad_norm,
        "grad_norm_clipped": row.grad_norm_clipped,
        "drift": row.drift,
        "ms": round(row.ms, 3),
        "ms_frozen": round(row.ms_frozen, 3),
        "steps_done": row.steps_done,
        "steps_skipped": row.steps_skipped,
    }


def tta_tables(r: TtaResults) -> list[Table]:
    """Losses beside the frozen model, then everything else."""
    rows = [
        _loss_row("adapted, online", r.loss_online, r.difference, r.ms_adapted),
        _loss_row("frozen", r.loss_frozen, None, r.ms_frozen),
        _loss_row("copy-last", r.copy_last, None, None),
    ]
    if r.periodic_reset is not None:
        rows.insert(1, _loss_row("periodic reset, online", r.periodic_reset, r.periodic_reset_difference, None))
    if r.loss_after_update is not None:
        rows.append(_loss_row("after update (saw its targets)", r.loss_after_update, None, None))
    state = "" if r.complete else ", INCOMPLETE"
    sizes = f"{counted(r.clips, 'clip')} ({r.clips_from}), {counted(len(r.orders), 'order')}"
    window = f"{counted(r.context_frames, 'context frame')}, {counted(r.T_rollout, 'predicted frame')}"
    title = f"Test-time adaptation, {sizes}, {window}{state}"
    losses = plain_table(title, ["", "L1 [95 %]", "- frozen [95 %]", "ms/clip"], rows)
    p = r.protocol
    how = f"{p['mode']}, {_adapting(p)}"
    share = f"{r.adapted_parameters:,} of {r.parameters:,}"
    if r.adapted_share is not None:
        share += f" ({100 * r.adapted_share:.2f} %)"
    facts: dict[str, Any] = {
        "protocol": f"{how}, memory {p['memory']}" + (", reset per clip" if p["reset_per_clip"] else ""),
        "adapted parameters": share,
        "relative to frozen": None if r.relative_difference is None else f"{100 * r.relative_difference:+.2f} %",
        "clips made worse": f"{100 * r.share_worse:.0f} %",
        "steps": f"{r.steps_done} done, {r.steps_skipped} skipped",
    }
    if r.per_step:
        more = len(r.per_step) - SHOWN_STEPS
        shown = "  ".join(number(loss) for loss in r.per_step[:SHOWN_STEPS])
        turn = ", frame by frame" if p["mode"] == "sequential" else ""
        name = f"loss before each update{turn}" + ("" if r.loss_exp == 1.0 else " (|x|^p / p)")
        facts[name] = shown + (f"  ({more} more in results.json)" if more > 0 else "")
        facts["gradient norm"] = f"{number(r.grad_norm)}, {number(r.grad_norm_clipped)} after clipping"
        facts["drift"] = None if r.drift is None else f"{r.drift:.3e}"
    if r.bytes_adapted is not None and r.bytes_frozen is not None:
        peaks = f"{r.bytes_adapted / 2**20:.1f} MiB adapted, {r.bytes_frozen / 2**20:.1f} MiB frozen"
        facts["peak memory of a clip"] = peaks
    if r.forgetting is not None:
        f = r.forgetting
        text = f"{f.before:.4f} before"
        if f.after is not None and f.difference is not None:
            relative = "" if f.ratio is None else f" ({100 * (f.ratio - 1):+.2f} %)"
            text += f", {f.after:.4f} after{relative}, difference {spread(f.difference)}"
        lost = f" ({f.left_out} more not readable or not finite)" if f.left_out else ""
        facts["source loss"] = f"{text}; {counted(f.clips, 'clip')}{lost}, {f.source}"
    if len(r.orders) > 1:
        facts["per order"] = "  ".join(f"{order.difference:+.4f}" for order in r.orders)
    if r.restarts:
        facts["restarts from the checkpoint"] = r.restarts
    if r.periodic_reset_restarts:
        facts["restarts of periodic reset"] = r.periodic_reset_restarts
    if r.skipped_clips:
        facts["clips left out"] = len(r.skipped_clips)
    if r.overlap_with_training:
        facts["WARNING"] = f"{r.overlap_with_training} of these clips were seen in training or adaptation"
    return [losses, pairs_table("", facts)]


def _loss_row(name: str, loss: Interval, difference: Interval | None, ms: float | None) -> list[str]:
    shown = "" if difference is None else spread(difference)
    return [name, spread(loss), shown, "" if ms is None else f"{ms:.1f}"]


def _adapting(protocol: Mapping[str, Any]) -> str:
    """What is adapted, and how."""
    if protocol["adapt"] == "none":
        return "no weights adapted"
    return f"{protocol['adapt']}, {protocol['optimizer']} lr {protocol['lr']:g}, {counted(protocol['steps'], 'step')}"


@own_settings()
def plot_stream(r: TtaResults, path: Path) -> None:
    """Rolling online loss of adapted and frozen over the first order; the source loss below."""
    figure, axes = new_figure(7.0, 5.6, rows=2)
    upper, lower = axes
    clips = range(1, len(r.rolling_online) + 1)
    upper.plot(clips, r.rolling_frozen, "--", label="frozen", color="0.4")
    upper.plot(clips, r.rolling_online, label="adapted, online")
    upper.set_ylabel("L1, trailing mean of 50")
    kept = "" if r.protocol["memory"] == "reset" else f", memory {r.protocol['memory']}"
    upper.set_title(f"{r.model}: {_adapting(r.protocol)}{kept}")
    upper.legend(frameon=False)
    trace = [] if r.forgetting is None else [point for point in r.forgetting.trace if point.order == 0]
    if trace:
        lower.plot([point.clips for point in trace], [point.loss for point in trace], marker="o", markersize=3)
        lower.axhline(trace[0].loss, color="0.4", linestyle="--", linewidth=1)
    else:
        lower.text(0.5, 0.5, "source loss not measured", ha="center", transform=lower.transAxes)
    upper.set_xlim(left=0)  # where the loss before the stream is
    lower.set_xlim(upper.get_xlim())
    lower.set_ylabel("source L1")
    lower.set_xlabel("clips of the stream")
    save_figure(figure, path)
