"""hope make-clips: write built-in physics clips."""

from __future__ import annotations

from typing import Annotated

import typer

from hopecli.cli.common import JsonOption, expanded


def make_clips_command(
    out: Annotated[str, typer.Argument(help="New or empty folder for the clips.")],
    clips: Annotated[int, typer.Option("--clips", help="Number of clips.")] = 64,
    grid: Annotated[int, typer.Option("--grid", help="Patches per side.")] = 16,
    dim: Annotated[int, typer.Option("--dim", help="Feature width.")] = 1024,
    domain: Annotated[
        str, typer.Option("--domain", help="base, scaling, ice, walls, rotation or compositional.")
    ] = "base",
    seed: Annotated[int, typer.Option("--seed", help="Seed of the scenes.")] = 0,
    dtype: Annotated[str, typer.Option("--dtype", help="float16 or float32.")] = "float16",
    json: JsonOption = False,
) -> None:
    """Write built-in clips: disks that are pushed, slide and bounce.

    The features come from a small frozen random encoder that stands in for V-JEPA 2: they have its shapes and roughly
    its statistics, not its meaning.
    """
    from hopecli.data.make_clips import make_clips
    from hopecli.report.console import counted, show
    from hopecli.report.progress import StageProgress
    from hopecli.report.tables import number, pairs_table

    with StageProgress() as progress:
        statistics = make_clips(
            expanded(out, "OUT"),
            clips=clips,
            grid=grid,
            dim=dim,
            domain=domain,
            seed=seed,
            dtype=dtype,
            on_clip=lambda done, total: progress("making clips", done, total),
        )
    facts = {
        "features": f"[8, {grid * grid}, {dim}] {dtype}, a frozen random encoder stands in for V-JEPA 2",
        "feature std": f"{statistics.feature_std:.3f} (V-JEPA 2 ViT-L: about 3.2)",
        "cosine, successive frames": f"{statistics.cosine_successive:.3f} (about 0.87)",
        "cosine, between clips": f"{number(statistics.cosine_between_clips)} (about 0.92)",
        "copy-last L1 per horizon": ", ".join(number(x) for x in statistics.copy_last_l1),
    }
    show(statistics, lambda _: [pairs_table(f"{counted(clips, 'clip')} in {out}", facts)], json=json)
