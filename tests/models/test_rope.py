"""3D RoPE against angles computed by hand, token by token."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hopecli.models.rope import RopeLayout, RotaryTables, part_width, rotary_tables, rotate

GRID, COND = 2, 2
TOKENS = COND + GRID * GRID


def tables(
    head_dim: int,
    *,
    layout: RopeLayout = "exact",
    first_frame: int = 0,
    frames: int = 1,
    cond_tokens: int = COND,
    dtype: torch.dtype = torch.float64,
) -> RotaryTables:
    return rotary_tables(
        head_dim=head_dim,
        grid=GRID,
        cond_tokens=cond_tokens,
        first_frame=first_frame,
        frames=frames,
        layout=layout,
        device=torch.device("cpu"),
        dtype=dtype,
    )


def by_hand(x: list[float], position: tuple[int, int, int], layout: RopeLayout) -> list[float]:
    """One token's vector rotated with plain arithmetic, from the formula of the protocol."""
    w = 2 * ((len(x) // 3) // 2)
    out = list(x)
    for part, p in enumerate(position):
        frequency = [p / 10000 ** (j / (w / 2)) for j in range(w // 2)]
        angles = [*frequency, *frequency] if layout == "vjepa2" else [a for a in frequency for _ in (0, 1)]
        for i in range(0, w, 2):
            at = part * w + i
            a, b = x[at], x[at + 1]
            out[at] = a * math.cos(angles[i]) - b * math.sin(angles[i])
            out[at + 1] = b * math.cos(angles[i + 1]) + a * math.sin(angles[i + 1])
    return out


@pytest.mark.parametrize("layout", ["vjepa2", "exact"])
@pytest.mark.parametrize("head_dim", [12, 14, 24])
def test_every_token_turns_by_frame_row_and_column(head_dim: int, layout: RopeLayout) -> None:
    frames, first = 2, 3
    x = torch.randn(frames * TOKENS, head_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = rotate(x, tables(head_dim, layout=layout, first_frame=first, frames=frames))
    for frame in range(frames):
        positions = [(first + frame, 0, 0)] * COND  # conditioning tokens turn with time only
        positions += [(first + frame, row, column) for row in range(GRID) for column in range(GRID)]
        for token, position in enumerate(positions):
            at = frame * TOKENS + token
            expected = torch.tensor(by_hand(x[at].tolist(), position, layout), dtype=torch.float64)
            # float64 sines of angles below 10: rounding only
            torch.testing.assert_close(found[at], expected, rtol=0, atol=1e-12)


def test_layouts_differ_as_published() -> None:
    # Width 12: parts of 4, frequencies 1 and 0.01. At frame 1 the time part of (1, 0, 1, 0) becomes:
    x = torch.tensor([[1.0, 0.0, 1.0, 0.0, *([0.0] * 8)]], dtype=torch.float64)
    exact = rotate(x, RotaryTables(*(t[:1] for t in tables(12, first_frame=1)))).flatten()
    tiled = rotate(x, RotaryTables(*(t[:1] for t in tables(12, layout="vjepa2", first_frame=1)))).flatten()
    c1, s1, c2, s2 = math.cos(1.0), math.sin(1.0), math.cos(0.01), math.sin(0.01)
    assert exact[:4].tolist() == pytest.approx([c1, s1, c2, s2], rel=1e-12)
    assert tiled[:4].tolist() == pytest.approx([c1, s2, c1, s2], rel=1e-12)


@pytest.mark.parametrize(("head_dim", "width"), [(24, 8), (16, 4), (64, 20), (5, 0), (6, 2), (7, 2), (11, 2)])
def test_part_width(head_dim: int, width: int) -> None:
    assert part_width(head_dim) == width


@pytest.mark.parametrize(("head_dim", "rotated"), [(16, 12), (7, 6), (11, 6), (5, 0)])
@pytest.mark.parametrize("layout", ["vjepa2", "exact"])
def test_what_is_left_over_is_not_rotated(head_dim: int, rotated: int, layout: RopeLayout) -> None:
    x = torch.randn(TOKENS, head_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = rotate(x, tables(head_dim, layout=layout, first_frame=5))
    assert torch.equal(found[:, rotated:], x[:, rotated:])
    if rotated:
        part = rotated // 3
        assert not torch.equal(found[:, :part], x[:, :part])
        assert torch.equal(found[:COND, part:], x[:COND, part:])  # conditioning tokens have no row and column


def test_the_first_token_of_the_first_frame_is_not_rotated() -> None:
    x = torch.randn(TOKENS, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = rotate(x, tables(12))
    assert torch.equal(found[: COND + 1], x[: COND + 1])  # row 0, column 0 of frame 0
    assert not torch.equal(found[COND + 1], x[COND + 1])


def scores(q: Tensor, k: Tensor, q_frame: int, k_frame: int, layout: RopeLayout) -> Tensor:
    """Dot products [tokens, tokens] of queries at one frame with keys at another."""
    left = rotate(q, tables(12, layout=layout, first_frame=q_frame))
    return left @ rotate(k, tables(12, layout=layout, first_frame=k_frame)).T


def test_exact_layout_sees_time_differences_only() -> None:
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(TOKENS, 12, dtype=torch.float64, generator=generator) for _ in "qk")
    near = scores(q, k, 2, 0, "exact")
    torch.testing.assert_close(scores(q, k, 7, 5, "exact"), near, rtol=0, atol=1e-12)
    assert not torch.allclose(scores(q, k, 3, 0, "exact"), near)
    # The published layout turns the two channels of a pair by different angles, which is why `exact` exists.
    assert not torch.allclose(scores(q, k, 7, 5, "vjepa2"), scores(q, k, 2, 0, "vjepa2"))


def test_frames_can_be_computed_one_by_one() -> None:
    whole = tables(16, frames=3, cond_tokens=3)
    one_by_one = [tables(16, first_frame=t, cond_tokens=3) for t in range(3)]
    assert torch.equal(whole.cos, torch.cat([t.cos for t in one_by_one]))
    assert torch.equal(whole.signed_sin, torch.cat([t.signed_sin for t in one_by_one]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_has_tables_in_float32(dtype: torch.dtype) -> None:
    """In bfloat16 frames 256 and 257 are one, and an angle of 7 is off by up to 0.03."""
    half, single = tables(24, first_frame=257, dtype=dtype), tables(24, first_frame=257, dtype=torch.float32)
    assert half.cos.dtype == half.signed_sin.dtype == torch.float32
    assert torch.equal(half.cos, single.cos)
    assert torch.equal(half.signed_sin, single.signed_sin)


def test_rotation_works_under_leading_axes() -> None:
    x = torch.randn(2, 3, TOKENS, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    t = tables(12, first_frame=2)
    assert torch.equal(rotate(x, t)[1, 2], rotate(x[1, 2], t))


def test_an_unknown_layout_is_an_error() -> None:
    with pytest.raises(ValueError, match="rope is 'sideways', not vjepa2 or exact"):
        tables(12, layout="sideways")  # type: ignore[arg-type]
