"""Results whose fields are all different numbers, so that one shown in the place of another is seen."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from hopecli.engine.results import DryRun, EvalResults, EvalRow, Interval, StepRecord, TrainSummary, ValidationRecord
from hopecli.engine.tta_results import Forgetting, OrderSummary, SourceRecord, TtaClip, TtaProgress, TtaResults


def cells(table: Table) -> dict[str, dict[str, str]]:
    """Row label -> column header -> text; a table of pairs has the one column ''."""
    columns = [
        [cell.plain if isinstance(cell, Text) else str(cell) for cell in column.cells] for column in table.columns
    ]
    heads = [column.header.plain if isinstance(column.header, Text) else str(column.header) for column in table.columns]
    labels, values = columns[0], columns[1:]
    return {
        label: {head: column[i] for head, column in zip(heads[1:], values, strict=True)}
        for i, label in enumerate(labels)
    }


def pairs(table: Table) -> dict[str, str]:
    """What -> value of a table of pairs."""
    return {label: row[""] for label, row in cells(table).items()}


def title(table: Table) -> str:
    assert isinstance(table.title, Text)
    return table.title.plain


def around(mean: float) -> Interval:
    """An interval whose bounds lie unevenly about the mean."""
    return Interval(mean=mean, low=mean - 0.003, high=mean + 0.005)


def step_record(step: int) -> StepRecord:
    return StepRecord(
        step=step,
        epoch=1,
        loss=step + 0.11111,
        loss_teacher=step + 0.22222,
        loss_rollout=step + 0.33333,
        lr=step * 1.234e-4,
        grad_norm=step + 0.44444,
        clips_per_second=56.78,
        data_seconds=0.012,
        step_seconds=0.345,
    )


VALIDATION = ValidationRecord(
    step=30,
    epoch=2,
    clips=17,
    loss_teacher=0.15,
    loss_rollout=0.3,
    rollout_per_horizon=[0.2, 0.4],
    copy_last=0.5,
    copy_last_per_horizon=[0.25, 0.75],
    seconds=6.54,
)

SUMMARY = TrainSummary(
    run_dir="runs/p/1",
    preset="p",
    model="hope",
    parameters=12_345_678,
    device="cpu",
    precision="bf16",
    steps=30,
    epochs=3,
    train_clips=153,
    held_out_clips=17,
    seconds=98.7,
    clips_per_second=56.78,
    loss=0.65432,
    validation=VALIDATION,
    skipped_clips=0,
    seed=7,
)


def eval_row(name: str, base: float) -> EvalRow:
    """A row of two horizons; every measure is `base` and an offset of its own."""
    return EvalRow(
        name=name,
        l1=around(base + 0.01),
        l1_per_horizon=[around(base + 0.02), around(base + 0.06)],
        relative=base + 0.11,
        relative_per_horizon=[base + 0.12, base + 0.16],
        cosine=around(base + 0.21),
        cosine_per_horizon=[around(base + 0.22), around(base + 0.26)],
        error_to_signal=base + 0.31,
        error_to_signal_per_horizon=[base + 0.32, base + 0.36],
        relative_per_clip=around(base + 0.41),
        relative_per_clip_per_horizon=[around(base + 0.42), around(base + 0.46)],
        error_to_signal_per_clip=around(base + 0.51),
        error_to_signal_per_clip_per_horizon=[around(base + 0.52), around(base + 0.56)],
    )


EVAL = EvalResults(
    checkpoint="runs/p/1",
    data="clips",
    model="hope",
    parameters=12_345_678,
    clips=17,
    clips_from="held out from training",
    overlap_with_training=None,
    context_frames=3,
    T_rollout=2,
    normalize_reps=True,
    device="cpu",
    precision="fp32",
    rows=[eval_row("model", 1.0), eval_row("copy_last", 2.0)],
    loss_teacher=around(0.15),
    action_sensitivity=around(0.07),
    action_sensitivity_relative=0.234,
    ratio_to_copy_last=0.5025,
    seconds=6.54,
    worst_clips=[],
    skipped_clips={},
    preset="p",
    step=None,
    epoch=None,
    seed=11,
    bootstrap_samples=1000,
    T_teacher=2,
    training_seed=7,
    read_as={},
    clips_with_ratio=16,
    clips_not_finite=[],
)

DRY_RUN = DryRun(
    preset="p",
    model="hope",
    parameters=12_345_678,
    trainable=9_876_543,
    data="clips",
    train_clips=153,
    held_out_clips=17,
    global_batch=16,
    micro_batch=4,
    steps_per_epoch=9,
    total_steps=27,
    batch=2,
    seconds=6.54,
    loss=0.65432,
    grad_norm=1.2345,
    static_bytes=3 * 2**29,
    activation_bytes_per_clip=0.25 * 2**30,
    estimated_bytes=2.75 * 2**30,
    device="cpu",
    precision="bf16",
)

CLIP = TtaClip(
    order=1,
    position=4,
    clip="clip_00007",
    online=0.51,
    frozen=0.62,
    copy_last=0.73,
    after_update=0.44,
    gain=0.11,
    periodic_reset=0.55,
    grad_norm=1.2,
    grad_norm_clipped=0.9,
    drift=0.034,
    ms=12.34567,
    ms_frozen=5.67891,
    steps_done=2,
    steps_skipped=3,
    step_losses=[0.66, 0.65],
)

PROGRESS = TtaProgress(
    done=8, total=10, window=3, online=0.5, frozen=0.625, drift=0.034567, steps_skipped=0, clips_skipped=0
)

# The source loss rises by 25 % over the first order; the second has a point that no picture of the first may show.
FORGETTING = Forgetting(
    source="held-out clips",
    clips=19,
    left_out=0,
    before=0.4,
    after=0.5,
    difference=around(0.1),
    ratio=1.25,
    trace=[SourceRecord(0, 0, 0.4), SourceRecord(0, 3, 0.45), SourceRecord(1, 3, 0.99)],
)

TTA = TtaResults(
    checkpoint="runs/p/1",
    data="clips",
    model="hope",
    parameters=12_345_678,
    adapted_parameters=345_678,
    adapted_share=0.028,
    protocol={
        "mode": "batch",
        "adapt": "layernorm",
        "optimizer": "sgd",
        "lr": 0.02,
        "steps": 2,
        "memory": "carry",
        "reset_per_clip": False,
    },
    context_frames=3,
    T_rollout=2,
    normalize_reps=True,
    loss_exp=1.0,
    read_as={},
    clips=3,
    clips_from="all",
    overlap_with_training=None,
    complete=True,
    loss_online=around(0.51),
    loss_frozen=around(0.62),
    difference=around(-0.11),
    relative_difference=-0.1774,
    copy_last=around(0.73),
    periodic_reset=around(0.55),
    periodic_reset_difference=around(-0.07),
    loss_after_update=around(0.44),
    after_update_note="diagnostic only",
    per_step=[0.66, 0.65],
    rolling_online=[0.61, 0.56, 0.51],
    rolling_frozen=[0.64, 0.63, 0.62],
    share_worse=0.23,
    steps_done=6,
    steps_skipped=1,
    restarts=0,
    periodic_reset_restarts=0,
    grad_norm=1.2,
    grad_norm_clipped=0.9,
    drift=0.034567,
    ms_adapted=12.34,
    ms_frozen=5.67,
    bytes_adapted=5 * 2**19,
    bytes_frozen=3 * 2**19,
    forgetting=FORGETTING,
    orders=[OrderSummary(0, None, 3, 0.52, -0.12, 0.03), OrderSummary(1, 5, 3, 0.5, -0.1, 0.04)],
    device="cpu",
    precision="fp32",
    seconds=98.7,
    stopped_by=None,
    skipped_clips={},
    bootstrap_samples=1000,
    training_seed=7,
)
