"""The HOPE block against the literal rule, token by token, and what its memory promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from hopecli.models.hope.memory import MemoryWeights, read
from hopecli.models.hope.titans import FastWeights, HopeBlock, ReadOrder, rms_normalise
from hopecli.models.hope.update import Write, apply_write, prepare_write, surprise
from hopecli.models.rope import RotaryTables, rotary_tables
from tests.check_golden import TOLERANCE, max_abs_errors

GOLDEN = Path(__file__).parents[1] / "golden"


def make_block(*, width: int = 12, read: ReadOrder = "after_write", perturb: float = 0.1) -> HopeBlock:
    torch.manual_seed(0)
    block = HopeBlock(
        width=width,
        grid=2,
        cond_tokens=3,
        num_heads=2,
        memory_multiplier=1.5,
        cms_multipliers=(1.0,),
        read=read,
    ).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(perturb * torch.randn_like(parameter))
    return block


def tables(t: int, *, width: int = 12, dtype: torch.dtype = torch.float64) -> RotaryTables:
    return rotary_tables(
        head_dim=width // 2,
        grid=2,
        cond_tokens=3,
        first_frame=t,
        frames=1,
        layout="vjepa2",
        device=torch.device("cpu"),
        dtype=dtype,
    )


def tokens(batch: int = 2, frames: int = 3, *, width: int = 12, seed: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, 7, width, generator=random, dtype=torch.float64)  # [B, T, C, d]


def walk(block: HopeBlock, x: Tensor) -> tuple[Tensor, list[FastWeights]]:
    """Outputs [B, T, C, d] and the memory after every frame."""
    memory, outputs, memories = None, [], []
    for t in range(x.shape[1]):
        y, memory = block(x[:, t], memory, tables(t, width=x.shape[-1], dtype=x.dtype))
        outputs.append(y)
        memories.append(memory)
    return torch.stack(outputs, dim=1), memories


def literal_write(w_in: Tensor, w_out: Tensor, write: Write, clip: int) -> tuple[Tensor, Tensor]:
    """hope.md's rule for one memory of one clip as it is written there: a loop, its gradients by autograd."""
    w_in, w_out = w_in.detach(), w_out.detach()
    hidden, width = w_in.shape
    new_in, new_out = write.alpha[clip] * w_in, write.alpha[clip] * w_out
    for k, v, eta in zip(write.keys[clip], write.values[clip], write.eta[clip], strict=True):
        a, b = w_in.clone().requires_grad_(), w_out.clone().requires_grad_()
        target = (v + w_out @ F.gelu(w_in @ v)).detach()
        gradient_in, gradient_out = torch.autograd.grad(0.5 * (k + b @ F.gelu(a @ k) - target).square().sum(), (a, b))
        u = F.gelu(w_in @ k)
        squared = u.square().sum() + 1e-6 * hidden
        new_in = new_in - eta * (new_in @ torch.outer(k, k) + gradient_in) / width
        new_out = new_out - eta * (new_out @ torch.outer(u, u) + gradient_out) / squared
    return new_in, new_out


@pytest.mark.parametrize("name", ["hope_block_small", "hope_block_read_before"])
def test_reference_numbers(name: str) -> None:
    errors = max_abs_errors(GOLDEN / f"{name}.npz")
    assert set(errors) == {"y", "w_in_after", "w_out_after", "eta", "alpha"}
    assert max(errors.values()) <= TOLERANCE


@torch.no_grad()
def test_the_write_is_the_literal_loop() -> None:
    """Tolerance 1e-12: 7 tokens of float64 rounding on values of order one; high rates, so that the tokens interact."""
    block = make_block()
    block.gates.bias.copy_(torch.tensor([2.0, 1.0]))
    _, memories = walk(block, tokens())
    before = memories[0].all()
    write = memories[1].write
    assert write.eta.min() > 0.5
    after = memories[1].all()
    for clip in range(2):
        for m in range(5):
            with torch.enable_grad():
                w_in, w_out = literal_write(before.w_in[clip, m], before.w_out[clip, m], write, clip)
            torch.testing.assert_close(after.w_in[clip, m], w_in, rtol=0, atol=1e-12)
            torch.testing.assert_close(after.w_out[clip, m], w_out, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_write_teaches_the_value() -> None:
    """Rates 0.05 on a clip's keys: afterwards the memory answers them nearer to their values than before."""
    torch.manual_seed(0)
    key, value = (rms_normalise(torch.randn(1, 4, 32, dtype=torch.float64)) for _ in range(2))
    weights = MemoryWeights(*(0.1 * torch.randn(1, 1, 32, 32, dtype=torch.float64) for _ in range(2)))
    write = prepare_write(key, value, torch.full((1, 4), 0.05).double(), torch.ones(1).double())
    target = read(weights, value)
    before = (read(weights, key) - target).norm(dim=-1)
    after = (read(apply_write(weights, write), key) - target).norm(dim=-1)
    torch.testing.assert_close(surprise(weights, write), before)
    assert (after < before).all()


@pytest.mark.parametrize("order", ["after_write", "before_write"])
def test_gradient_through_two_writes(order: ReadOrder) -> None:
    """Every parameter and the input, through the writes of two frames into the output of the third."""
    block = make_block(width=8, read=order)
    names, parameters = zip(*block.named_parameters(), strict=True)
    x = tokens(batch=2, frames=3, width=8).requires_grad_()

    def last(x: Tensor, *weights: Tensor) -> Tensor:
        memory = None
        for t in range(3):
            named = dict(zip(names, weights, strict=True))
            y, memory = functional_call(block, named, (x[:, t], memory, tables(t, width=8)))
        return y

    assert torch.autograd.gradcheck(last, (x, *parameters), fast_mode=True)


def test_full_jacobian_of_the_write() -> None:
    """Every entry: weights, keys, values, rates and retention of two chained writes."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    weights = (normal(2, 5, 4).requires_grad_(), normal(2, 4, 5).requires_grad_())
    gates = (normal(2, 3).sigmoid().requires_grad_(), normal(2).sigmoid().requires_grad_())

    def twice(w_in: Tensor, w_out: Tensor, k: Tensor, v: Tensor, eta: Tensor, alpha: Tensor) -> MemoryWeights:
        after = apply_write(MemoryWeights(w_in, w_out), prepare_write(rms_normalise(k), rms_normalise(v), eta, alpha))
        return apply_write(after, prepare_write(rms_normalise(v), rms_normalise(k), eta, alpha))

    keys_values = (normal(2, 3, 4).requires_grad_(), normal(2, 3, 4).requires_grad_())
    assert torch.autograd.gradcheck(twice, (*weights, *keys_values, *gates))


@torch.no_grad()
def test_before_the_first_write_weights_are_shared_and_afterwards_per_clip() -> None:
    _, memories = walk(make_block(), tokens(batch=4))
    assert memories[0].others.w_in.shape == (4, 18, 12)  # k, v, eta, alpha: no batch axis yet
    assert memories[1].others.w_in.shape == (4, 4, 18, 12)
    assert memories[2].all().w_in.shape == (4, 5, 18, 12)
    assert memories[2].all().w_out.shape == (4, 5, 12, 18)


@torch.no_grad()
def test_a_memory_does_not_change_with_the_parameters() -> None:
    block = make_block()
    _, memories = walk(block, tokens(frames=1))
    before = memories[0].all()
    for parameter in block.parameters():
        parameter.add_(1.0)
    after = memories[0].all()
    assert torch.equal(before.w_in, after.w_in)
    assert torch.equal(before.w_out, after.w_out)


def test_a_zero_token_has_finite_gradients() -> None:
    block = make_block(perturb=0.0)
    x = tokens()
    x[:, :, 1] = 0.0
    x.requires_grad_()
    outputs, _ = walk(block, x)
    outputs.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@torch.no_grad()
def test_writes_stay_in_float32_under_autocast() -> None:
    """bfloat16 products outside the write: outputs of order one agree to its 8 bits, a few roundings deep (0.05)."""
    block = make_block(perturb=0.0).float()
    x = tokens().float()
    exact, _ = walk(block, x)
    with torch.autocast("cpu", torch.bfloat16):
        rough, memories = walk(block, x)
    settled = memories[-1].all()
    assert settled.w_in.dtype == settled.w_out.dtype == memories[-1].write.solved_keys.dtype == torch.float32
    assert not torch.equal(rough.float(), exact)
    torch.testing.assert_close(rough.float(), exact, rtol=0, atol=0.05)


@torch.no_grad()
@pytest.mark.parametrize("retained", [3.0, 6.5])
def test_rates_keep_their_digits_under_autocast(retained: float) -> None:
    """In 8 bits alpha at gate bias 6.5, 0.9985, would be 1. Its input is of bfloat16: what is forgotten, 1 - alpha, and
    eta then differ by less than one of its roundings, 2 ** -8 or 0.4 %: 0.5 % is over twice what is found."""
    block = make_block(perturb=0.0).float()
    block.gates.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    block.gates.bias[1] = retained
    x = tokens().float()
    _, exact = walk(block, x)
    with torch.autocast("cpu", torch.bfloat16):
        _, rough = walk(block, x)
    for a, b in zip(rough, exact, strict=True):
        torch.testing.assert_close(1 - a.write.alpha, 1 - b.write.alpha, rtol=0.005, atol=0)
        torch.testing.assert_close(a.write.eta, b.write.eta, rtol=0.005, atol=0)


@torch.no_grad()
def test_autocast_changes_no_bit_of_a_write() -> None:
    """A dtype of float32 is not enough: autocast would round products to 8 bits on their way into float32 sums."""
    random = torch.Generator().manual_seed(0)
    w_in, w_out = torch.randn(2, 5, 12, 8, generator=random), torch.randn(2, 5, 8, 12, generator=random)
    keys, values = (rms_normalise(torch.randn(2, 7, 8, generator=random)) for _ in range(2))
    eta, alpha = torch.rand(2, 7, generator=random), torch.rand(2, generator=random)
    weights, write = MemoryWeights(w_in, w_out), prepare_write(keys, values, eta, alpha)
    after, error = apply_write(weights, write), surprise(weights, write)
    with torch.autocast("cpu", torch.bfloat16):
        assert (w_in @ w_out).dtype == torch.bfloat16  # it acts
        again = prepare_write(keys, values, eta, alpha)
        after_again, error_again = apply_write(weights, write), surprise(weights, write)
    for found, expected in zip((*again, *after_again, error_again), (*write, *after, error), strict=True):
        assert torch.equal(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_write_of_half_precision_numbers_is_made_in_float32(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    weights = MemoryWeights(*(torch.randn(2, 5, *s, generator=random).to(dtype) for s in ((12, 8), (8, 12))))
    keys, values = (rms_normalise(torch.randn(2, 7, 8, generator=random)).to(dtype) for _ in range(2))
    rates = (torch.rand(2, 7, generator=random).to(dtype), torch.rand(2, generator=random).to(dtype))
    found = apply_write(weights, prepare_write(keys, values, *rates))
    single = prepare_write(keys.float(), values.float(), *(x.float() for x in rates))
    expected = apply_write(MemoryWeights(*(x.float() for x in weights)), single)
    assert torch.equal(found.w_in, expected.w_in)
    assert torch.equal(found.w_out, expected.w_out)


@torch.no_grad()
def test_each_write_is_within_its_contraction_bound() -> None:
    """|W'| <= alpha |W| + sum_i eta_i |g_i|: I - eta n n^T with |n| <= 1 and eta in (0, 1) is a contraction.

    Frobenius norms over 64 frames of random input, for both matrices of all five memories; 1e-9 is rounding.
    """
    block = make_block(perturb=0.0)
    _, memories = walk(block, 3.0 * tokens(batch=2, frames=64))
    start = MemoryWeights(block.memories.w_in, block.memories.w_out)
    before = MemoryWeights(start.w_in.expand(2, -1, -1, -1), start.w_out.expand(2, -1, -1, -1))
    first = torch.hypot(*(torch.linalg.matrix_norm(w) for w in before))
    for memory in memories:
        write, after = memory.write, memory.all()
        key = write.keys[:, None]
        hidden = (key @ before.w_in.mT).requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(F.gelu(hidden).sum(), hidden)
        error = read(before, write.keys) - read(before, write.values)
        delta = slope * (error @ before.w_out)
        size = (F.gelu(hidden).square().sum(-1) + 1e-6 * hidden.shape[-1]).sqrt()
        eta, alpha = write.eta[:, None], write.alpha[:, None]
        signals = ((eta * delta.norm(dim=-1) / key.shape[-1] ** 0.5).sum(-1), (eta * error.norm(dim=-1) / size).sum(-1))
        assert surprise(before, write).allclose(error.norm(dim=-1))
        for old, new, signal in zip(before, after, signals, strict=True):
            bound = alpha * torch.linalg.matrix_norm(old) + signal
            assert (torch.linalg.matrix_norm(new) <= bound + 1e-9).all()
        before = after
    last = torch.hypot(*(torch.linalg.matrix_norm(w) for w in before))
    middle = torch.hypot(*(torch.linalg.matrix_norm(w) for w in memories[31].all()))
    # Measured: the norms settle after some 30 frames, within a factor of 6 of the initial ones.
    assert (last < 1.5 * middle).all()
    assert (last < 10.0 * first).all()


def test_an_unknown_read_is_refused() -> None:
    with pytest.raises(ValueError, match="sometimes"):
        make_block(read="sometimes")  # type: ignore[arg-type]
