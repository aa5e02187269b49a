"""Messages and exit codes of user errors."""

from __future__ import annotations

import pytest

from hopecli import errors
from hopecli.errors import DataError, HopeError


def test_exit_codes_are_the_documented_ones() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HopeError)]
    codes = {kind.__name__: kind.exit_code for kind in kinds}
    assert codes == {
        "HopeError": 1,
        "SettingsError": 2,
        "DataError": 3,
        "CheckpointError": 4,
        "DeviceError": 5,
        "DivergedError": 6,
        "StoppedError": 75,
        "AbortedError": 130,
    }


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (HopeError("is broken"), "is broken"),
        (DataError("is broken", where="clip_00001"), "clip_00001: is broken"),
        (DataError("is broken", where="a\nb"), r"a\nb: is broken"),
        (DataError("is wrong", where="a", value="x y"), "a: is wrong (got 'x y')"),
        (DataError("is wrong", value=[1, 2]), "is wrong (got [1, 2])"),
        (DataError("is wrong", value=0, fix="use 1"), "is wrong (got 0). Use 1"),
        (DataError("No 'tain'. Did you mean 'train'?", fix="see help"), "No 'tain'. Did you mean 'train'? See help"),
        (DataError("Is wrong.", fix="see help"), "Is wrong. See help"),
    ],
)
def test_messages(error: HopeError, text: str) -> None:
    assert str(error) == text
