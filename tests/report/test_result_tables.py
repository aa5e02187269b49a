"""Tables of training, validation, evaluation and dry runs: every cell against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.table import Table

from hopecli.engine.results import Interval
from hopecli.report.tables import dry_run_table, eval_tables, number, spread, train_tables, validation_table
from tests.report.examples import DRY_RUN, EVAL, SUMMARY, VALIDATION, cells, pairs, title


def test_training() -> None:
    training, validation = train_tables(SUMMARY)
    assert title(training) == "Training"
    assert pairs(training) == {
        "run": "runs/p/1",
        "model": "hope, 12.35 M parameters",
        "device": "cpu, bf16",
        "steps": "30 in 3 epochs",
        "clips": "153 training, 17 held out",
        "time": "99 s in all, 56.8 clips/s in training",
        "last loss": "0.6543",
    }
    assert title(validation) == title(validation_table(VALIDATION))


def test_training_says_what_was_skipped_and_leaves_out_what_was_not_measured() -> None:
    (training,) = train_tables(replace(SUMMARY, skipped_clips=4, clips_per_second=None, loss=None, validation=None))
    shown = pairs(training)
    assert shown["clips"] == "153 training, 17 held out, 4 skipped"
    assert (shown["time"], shown["last loss"]) == ("99 s in all", "-")


def test_validation_is_divided_by_copy_last() -> None:
    table = validation_table(VALIDATION)
    assert title(table) == "Held-out rollout L1 after epoch 3 (17 clips)"
    assert cells(table) == {
        "model": {"mean": "0.3000", "+1": "0.2000", "+2": "0.4000"},
        "copy-last": {"mean": "0.5000", "+1": "0.2500", "+2": "0.7500"},
        "ratio": {"mean": "0.6000", "+1": "0.8000", "+2": "0.5333"},
    }


def test_nothing_is_divided_by_a_copy_last_of_zero() -> None:
    still = replace(VALIDATION, copy_last=0.375, copy_last_per_horizon=[0.0, 0.75])
    assert cells(validation_table(still))["ratio"] == {"mean": "0.8000", "+1": "-", "+2": "0.5333"}
    assert "ratio" not in cells(validation_table(replace(VALIDATION, copy_last=0.0, copy_last_per_horizon=[0.0, 0.0])))


def eval_table(name: str) -> Table:
    """The table of that title: others may be added."""
    (table,) = [table for table in eval_tables(EVAL) if title(table) == name]
    return table


def test_evaluation_per_horizon_shows_l1() -> None:
    shown = cells(eval_table("Rollout L1, 17 clips (held out from training), 3 context frames"))
    for name, numbers in {
        "model": {"mean": "1.0100", "+1": "1.0200", "+2": "1.0600"},
        "copy-last": {"mean": "2.0100", "+1": "2.0200", "+2": "2.0600"},
    }.items():
        assert {column: shown[name][column] for column in numbers} == numbers


# Other measures may get columns of their own, so each is looked up by its name.
@pytest.mark.parametrize(
    ("column", "model", "copy_last"),
    [
        ("L1 [95 %]", "1.0100 [1.0070, 1.0150]", "2.0100 [2.0070, 2.0150]"),
        ("/ copy-first", "1.1100", "2.1100"),
        ("mean of ratios [95 %]", "1.4100 [1.4070, 1.4150]", "2.4100 [2.4070, 2.4150]"),
        ("cosine", "1.2100", "2.2100"),
        ("error / signal", "1.3100", "2.3100"),
    ],
)
def test_evaluation_means_over_horizons(column: str, model: str, copy_last: str) -> None:
    shown = cells(eval_table("Means over horizons"))
    assert (shown["model"][column], shown["copy-last"][column]) == (model, copy_last)


def test_evaluation_without_anything_that_moves_has_no_ratio_per_clip() -> None:
    still = replace(EVAL.rows[0], relative=None, relative_per_clip=None)
    shown = cells(eval_tables(replace(EVAL, rows=[still]))[1])["model"]
    assert (shown["/ copy-first"], shown["mean of ratios [95 %]"]) == ("-", "-")


def test_evaluation_facts() -> None:
    facts = pairs(eval_tables(EVAL)[-1])
    assert facts["model / copy-last"] == "0.5025"
    assert facts["teacher-forced L1, frames 1 to 2"] == "0.1500 [0.1470, 0.1550]"
    assert facts["action sensitivity"] == "0.0700 [0.0670, 0.0750], shuffled actions are 23.4 % worse"
    assert not {"WARNING", "worst clips"} & set(facts)


@pytest.mark.parametrize(("share", "shown"), [(-1e-6, "0.0 % worse"), (-0.0123, "1.2 % better")])
def test_actions_that_make_no_difference(share: float, shown: str) -> None:
    still = replace(EVAL, action_sensitivity=Interval(-1e-7, -2e-5, 2e-5), action_sensitivity_relative=share)
    fact = pairs(eval_tables(still)[-1])["action sensitivity"]
    assert fact == f"0.0000 [0.0000, 0.0000], shuffled actions are {shown}"


@pytest.mark.parametrize(
    ("frames", "shown"), [(4, "teacher-forced L1, frames 1 to 4"), (7, "teacher-forced L1, frames 1 to 7")]
)
def test_teacher_forced_frames_are_named(frames: int, shown: str) -> None:
    """A run's validation takes those of objective.T_teacher, an evaluation all up to the rollout's last."""
    assert shown in pairs(eval_tables(replace(EVAL, T_teacher=frames))[-1])


def test_evaluation_warns_of_clips_trained_on_and_names_the_worst() -> None:
    facts = pairs(eval_tables(replace(EVAL, overlap_with_training=5, worst_clips=["b", "a"]))[-1])
    assert facts["WARNING"] == "5 of these clips were seen in training or adaptation"
    assert facts["worst clips"] == "b, a"


def test_evaluation_without_actions_or_teacher() -> None:
    less = replace(
        EVAL,
        loss_teacher=None,
        action_sensitivity=None,
        action_sensitivity_relative=None,
        ratio_to_copy_last=None,
    )
    facts = pairs(eval_tables(less)[-1])
    assert (facts["model / copy-last"], facts["teacher-forced L1, frames 1 to 2"]) == ("-", "not measured")
    assert "action sensitivity" not in facts


def test_numbers() -> None:
    assert (number(0.123456), number(None)) == ("0.1235", "-")
    assert spread(Interval(0.5, 0.25, 1.0)) == "0.5000 [0.2500, 1.0000]"
    assert spread(Interval(0.5, None, None)) == "0.5000"


def test_dry_run() -> None:
    table = dry_run_table(DRY_RUN)
    assert title(table) == "Dry run of p"
    assert pairs(table) == {
        "model": "hope, 12,345,678 parameters (9,876,543 trainable)",
        "device": "cpu, bf16",
        "clips": "clips: 153 training, 17 held out",
        "batch": "16 global, 4 per process and pass",
        "steps": "9 per epoch, 27 in all",
        "forward and backward": "6.54 s on 2 clips, loss 0.6543, gradient norm 1.23",
        "weights, gradients, AdamW": "1.50 GiB",
        "activations per clip (measured)": "0.25 GiB",
        "memory estimate for this batch": "2.75 GiB",
    }


def test_dry_run_without_clips_or_measured_memory() -> None:
    shown = pairs(dry_run_table(replace(DRY_RUN, train_clips=None, activation_bytes_per_clip=None)))
    assert (shown["clips"], shown["steps"]) == ("clips", "not measured")
    assert shown["activations per clip (measured)"] == "not measured"


def test_no_warning_of_no_clips() -> None:
    assert "WARNING" not in pairs(eval_tables(replace(EVAL, overlap_with_training=0))[-1])
