"""The survey of a folder of clips as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from hopecli.data.survey import Finding, PresetFit, Survey
from hopecli.errors import command_line
from hopecli.report.console import counted
from hopecli.report.tables import number, pairs_table, plain_table


def survey_report(survey: Survey) -> list[RenderableType]:
    """Tables of sizes, content, findings and presets, and the verdict in one line."""
    parts: list[RenderableType] = [
        pairs_table(f"Clips in {survey.folder}", _sizes(survey)),
        pairs_table(_content_title(survey), _content(survey)),
        pairs_table("Actions", _actions(survey)),
    ]
    if survey.findings:
        rows = [_finding_row(finding) for finding in survey.findings]
        columns = ["severity", "code", "clips", "first clips", "example"]
        parts.append(plain_table("Findings", columns, rows, numbers_from=len(columns)))
    if survey.presets:
        columns = ["preset", "fits", "overrides it needs", "split"]
        rows = [_preset_row(fit) for fit in survey.presets]
        parts.append(plain_table("Presets on these clips", columns, rows, numbers_from=len(columns)))
    return [*parts, Text(_verdict(survey))]


def _verdict(survey: Survey) -> str:
    if not survey.findings:
        return f"No defects found in {counted(survey.clips, 'clip')} ({survey.content_read} read whole)."
    kinds = f"{counted(survey.errors, 'kind')} of error, {survey.warnings} of warning"
    return f"{kinds}; {survey.usable} of {counted(survey.clips, 'clip')} usable."


def _sizes(survey: Survey) -> Mapping[str, Any]:
    g, ids = survey.geometry, survey.ids
    gaps = "no gaps"
    if ids.missing:
        shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ids.gaps)
        gaps = f"{ids.missing} ids missing: {shown}"
    grid = None if g.grid is None else f"{g.grid[0]} x {g.grid[1]}"
    frames = ", ".join(f"{t} in {counted(n, 'clip')}" for t, n in g.frame_counts.items())
    rate = survey.storage.read_bytes_per_second
    return {
        "clips": f"{survey.clips}, ids {ids.first} to {ids.last}, {gaps}",
        "usable": f"{survey.usable} pass training's check for {survey.checked_frames} frames",
        "feature map": survey.feature_map,
        "layouts": _counts(survey.layouts),
        "dtypes": _counts(survey.dtypes),
        "encoded frames T": frames or None,
        "patches N, grid": None if g.patches is None else f"{g.patches}, {grid or 'not square'}",
        "width D": g.width,
        "sizes inferred from": g.inferred_from,
        "states, extrinsics": f"in {survey.states} and {counted(survey.extrinsics, 'clip')}",
        "on disk": size(survey.storage.bytes),
        "read rate": None if rate is None else f"{size(rate)}/s (page cache included)",
        "surveyed in": f"{survey.seconds:.1f} s",
    }


def _content_title(survey: Survey) -> str:
    what = "all clips" if survey.depth == "deep" else "a sample; --deep reads all"
    return f"Features of {counted(survey.content_read, 'clip')} ({what})"


def _content(survey: Survey) -> Mapping[str, Any]:
    f, motion = survey.features, survey.motion
    if f is None:
        return {"mean, std": None}
    width = survey.geometry.width
    copies = survey.duplicates
    alike = f", {copies.alike} more look alike (--deep compares them)" if copies.alike else ""
    return {
        "mean, std": f"{f.mean:.4f}, {f.std:.4f}",
        "range": f"{f.min:.4g} to {f.max:.4g}",
        "dead dimensions": f"{f.dead_count} of {width}{_some(f.dead_dimensions)}",
        "outlier dimensions": f"{f.outlier_count} with rms over 5x the median{_some(f.outlier_dimensions)}",
        "copy-last L1 per horizon": None if motion is None else "  ".join(number(x) for x in motion.copy_last_l1),
        "": "the error of repeating frame 0, in the normalised space: the number every model must beat",
        "duplicates": f"{copies.clips}{alike}",
    }


def _actions(survey: Survey) -> Mapping[str, Any]:
    a = survey.actions
    ranges = ", ".join(f"{low:.4g} to {high:.4g}" for low, high in a.range)
    return {
        "width A": a.width,
        "rows": _counts({str(rows): n for rows, n in a.rows.items()}) or None,
        "original frames": _most(a.original_frames, of=len(a.rows)),
        "alignments that fit": ", ".join(f"{rule} ({n})" for rule, n in a.alignments.items() if n) or "none",
        "suggested alignment": _suggestion(survey),
        "range per dimension": ranges or None,
        "zero actions": None
        if a.zero_rows is None or a.zero_clips is None
        else f"{100 * a.zero_rows:.1f} % of rows, {100 * a.zero_clips:.1f} % of clips have none other",
    }


def _most(rows: int | None, *, of: int) -> str | None:
    """The most common number of rows, and that it is not the only one `of` several."""
    return None if rows is None else f"{rows}{' (most common)' if of > 1 else ''}"


def _suggestion(survey: Survey) -> str | None:
    a = survey.actions
    if a.suggested_alignment is None:
        return None if a.width is None else "none: no rule fits the rows"
    return f"{a.suggested_alignment}: {a.suggested_because}"


def _finding_row(finding: Finding) -> list[str]:
    more = ", ..." if finding.count > len(finding.clips) else ""
    return [
        finding.severity,
        finding.code,
        str(finding.count),
        ", ".join(finding.clips) + more,
        finding.example,
    ]


def _preset_row(fit: PresetFit) -> list[str]:
    split = "-"
    if fit.train_clips is not None and fit.held_out_ids is not None:
        split = f"{fit.train_clips} train, {fit.held_out_clips} held out (ids {_range(fit.held_out_ids)})"
    needs = fit.problem or command_line(fit.overrides)
    return [fit.name, "yes" if fit.fits else "no", needs or "none", split]


def _range(ids: tuple[int, int]) -> str:
    return str(ids[0]) if ids[0] == ids[1] else f"{ids[0]} to {ids[1]}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{what} ({n})" for what, n in counts.items())


def _some(dimensions: tuple[int, ...]) -> str:
    return f": {', '.join(map(str, dimensions))}" if dimensions else ""


def size(count: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
