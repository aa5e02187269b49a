"""hope presets: list them, show one resolved with the origin of every value, or compare two."""

from __future__ import annotations

from typing import Annotated

import typer

from hopecli.cli.common import JsonOption, Overrides, complete_presets
from hopecli.errors import SettingsError, command_line


def presets_command(
    name: Annotated[
        str | None, typer.Argument(help="Preset to show; none lists all.", autocompletion=complete_presets)
    ] = None,
    overrides: Overrides = None,
    diff: Annotated[
        str | None,
        typer.Option("--diff", help="Show only what differs from this preset.", autocompletion=complete_presets),
    ] = None,
    json: JsonOption = False,
) -> None:
    """List presets, or show one resolved with the origin of every value."""
    from hopecli.config.explain import differences, to_tree, value_rows
    from hopecli.config.files import list_presets
    from hopecli.config.load import load_preset
    from hopecli.report.console import say, show
    from hopecli.report.tables import difference_table, preset_table, value_table

    if name is None:
        if diff is not None:
            fix = f"give the other preset too: hope presets NAME {command_line(['--diff', diff])}"
            raise SettingsError("needs two presets", where="--diff", value=diff, fix=fix)
        found: dict[str, str] = {}
        for preset, path in list_presets().items():
            try:
                found[preset] = load_preset(str(path), where=str(path)).settings.description
            except SettingsError as error:  # one bad file hides no others
                text = " ".join(str(error).split())
                say(f"left out: {text if len(text) <= 300 else f'{text[:300]}...'}")
        show(found, lambda _: [preset_table(found)], json=json)
        return
    resolved = load_preset(name, overrides or [], where="hope presets")
    if diff is not None:
        changes = differences(load_preset(diff, where="--diff").settings, resolved.settings)
        pairs = {key: list(pair) for key, pair in changes.items()}
        show(pairs, lambda _: [difference_table(diff, name, changes)], json=json)
        return
    tree = {"settings": to_tree(resolved.settings), "origins": resolved.origins}
    show(tree, lambda _: [value_table(name, value_rows(resolved))], json=json)
