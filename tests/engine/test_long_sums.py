"""Where M1 and M2 GPUs may add up weight gradients wrongly, a run says so and how to stay below."""

from __future__ import annotations

import pytest

from hopecli.config.load import load_preset
from hopecli.engine.long_sums import long_sums_note
from hopecli.hardware import DeviceChoice, DeviceName

ROLLOUT_ONLY = ["objective.loss_weight_teacher=0", "objective.curriculum=[]"]


@pytest.mark.parametrize(
    ("preset", "overrides", "version", "rows", "accumulate"),
    [
        # 258 tokens a frame, 7 frames in the parallel pass: 18 clips have 32,508 rows, 19 have 34,314.
        ("vjepa2_ac", ["data.batch_size=64"], "2.13.0", "115,584", "4"),
        ("vjepa2_ac", ["data.batch_size=19"], "2.6.0+cpu", "34,314", "19"),
        ("vjepa2_ac", ["data.batch_size=18"], "2.13.0", None, None),
        ("vjepa2_ac", ["data.batch_size=64", "training.accumulate=4"], "2.13.0", None, None),
        ("vjepa2_ac", ["data.batch_size=19", "model.use_extrinsics=true"], "2.13.0", "34,447", "19"),
        ("vjepa2_ac", ["data.batch_size=64"], "2.14.0", None, None),  # torch uses kernels of its own since
        # Where the parallel pass is never learned, the longest sum is a step's: 258 rows a clip.
        ("vjepa2_ac", ["data.batch_size=126", *ROLLOUT_ONLY], "2.13.0", None, None),
        ("vjepa2_ac", ["data.batch_size=128", *ROLLOUT_ONLY], "2.13.0", "33,024", "2"),
        # HOPE walks frame by frame; its memories' gradients are batched products, which torch has not mended.
        ("ac_hope_vit_param_matched", ["data.batch_size=128"], "2.15.0", "33,024", "2"),
        ("ac_hope_vit_param_matched", ["data.batch_size=126"], "2.13.0", None, None),
        ("baseline_convlstm", ["data.batch_size=1024"], "2.13.0", None, None),  # convolutions
    ],
)
def test_a_note_where_sums_are_too_long(
    preset: str, overrides: list[str], version: str, rows: str | None, accumulate: str | None
) -> None:
    settings = load_preset(preset, overrides).settings
    note = long_sums_note(settings, on("mps"), version)
    if rows is None:
        assert note is None
    else:
        assert note is not None
        assert f"sum over {rows} (training.accumulate={accumulate} keeps below)" in note
        enough = load_preset(preset, [*overrides, f"training.accumulate={accumulate}"]).settings
        assert long_sums_note(enough, on("mps"), version) is None
    for device in ("cpu", "cuda"):
        assert long_sums_note(settings, on(device), version) is None


def test_one_clip_may_be_too_much() -> None:
    settings = load_preset("vjepa2_ac", ["data.batch_size=1", "data.grid=80"]).settings
    note = long_sums_note(settings, on("mps"), "2.13.0")
    assert note is not None
    assert note.endswith("sum over 44,814")  # 7 frames of 80 x 80 + 2 tokens


def on(device: DeviceName) -> DeviceChoice:
    return DeviceChoice(device, "fp32", "", "", "")
