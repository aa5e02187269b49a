"""The report of hope tta: files in the results folder, the table or JSON on stdout."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

from hopecli.errors import StoppedError, written

if TYPE_CHECKING:
    from hopecli.cli.checkpoints import Trained
    from hopecli.engine.tta_job import StreamRecord, TtaJob
    from hopecli.engine.tta_results import TtaResults
    from hopecli.engine.tta_summary import StreamFacts

ADAPTED = "adapted.safetensors"


def report(trained: Trained, job: TtaJob, record: StreamRecord, facts: StreamFacts, *, json: bool) -> None:
    """The files, and the table (or JSON) on stdout, also when a file cannot be written; StoppedError after a signal."""
    from hopecli.engine.scores import too_narrow
    from hopecli.engine.tta_state import STATE_FILE
    from hopecli.engine.tta_summary import summarise_stream
    from hopecli.report.console import counted, say, show
    from hopecli.report.tta import tta_tables

    fix = "go on with the same command and --resume"
    stopped = f"stopped by {record.stopped_by} after {counted(len(record.rows), 'clip')}"
    if record.stopped_by is not None and not record.rows:
        raise StoppedError(stopped, fix=fix)
    results, folder = summarise_stream(job, record, facts), job.folder
    try:
        write_files(trained, job, record, results, facts)
        forgetting = 0 if results.forgetting is None else results.forgetting.clips
        for few in filter(None, (too_narrow(results.clips), too_narrow(forgetting, "source clips"))):
            say(few)
        say(f"results: {folder}")
    finally:
        # Ctrl-C ends `| tee` too: a stdout lost with it does not change that the stream was stopped and can go on.
        with nullcontext() if results.complete else suppress(OSError, SystemExit):
            show(results, tta_tables, json=json)
    if not results.complete:
        raise StoppedError(f"{stopped}; the results so far are written", where=str(folder), fix=fix)
    with written(folder / STATE_FILE):
        (folder / STATE_FILE).unlink(missing_ok=True)


def write_files(trained: Trained, job: TtaJob, record: StreamRecord, results: TtaResults, facts: StreamFacts) -> None:
    """results.json, per_clip.csv, the picture and the adapted weights."""
    from hopecli.engine.checkpoint import write_weights
    from hopecli.engine.results import to_tree
    from hopecli.report.files import write_csv, write_json
    from hopecli.report.tta import csv_row, plot_stream

    folder = job.folder
    with written(folder):
        write_json(folder / "results.json", to_tree(results))
        write_csv(folder / "per_clip.csv", [csv_row(row) for row in record.rows])
        plot_stream(results, folder / "stream.png")
    if job.settings.adaptation.adapt == "none":  # weights of an earlier stream are not of these results
        with written(folder / ADAPTED):
            (folder / ADAPTED).unlink(missing_ok=True)
    else:
        reset = job.settings.adaptation.reset_per_clip
        earlier = trained.checkpoint.info.get("tta", {}).get("fingerprints", [])  # of weights adapted once before
        learned = set() if reset else {facts.fingerprints[row.clip] for row in record.rows}
        tta = {
            "protocol": results.protocol,
            "clips": results.data,
            "complete": results.complete,
            # What an evaluation recognises the clips by that these weights have seen.
            "fingerprints": sorted({*earlier, *learned}),
            "weights": "the checkpoint's, to which each clip resets them" if reset else "after the last clip",
        }
        info = {**trained.checkpoint.info, "tta": tta}
        write_weights(folder / ADAPTED, job.model.state_dict(), trained.checkpoint.settings, info)
