"""SAD by hand, and the packed reference masks behind it."""

from __future__ import annotations

import itertools

import pytest
import torch

import hf_nm
from hf_nm.sparsity.bits import pack_bits, unpack_bits
from hf_nm.sparsity.divergence import MaskHistory, rate


def bits(text: str) -> torch.Tensor:
    return torch.tensor([letter == "1" for letter in text])


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [("1100", "1100", 0), ("1100", "1010", 2), ("1100", "0011", 4), ("11000011", "10100101", 4)],
)
def test_sad_literal(before: str, after: str, expected: int, device: torch.device) -> None:
    """Red if a swap counts one instead of two, or only one direction counts."""
    assert hf_nm.sad(bits(before).to(device), bits(after).to(device)) == expected
    assert hf_nm.sad(bits(after).to(device), bits(before).to(device)) == expected


def test_sad_is_an_int_for_any_shape() -> None:
    before, after = torch.zeros(2, 3, 4, dtype=torch.bool), torch.ones(2, 3, 4, dtype=torch.bool)
    result = hf_nm.sad(before, after)
    assert result == 24
    assert type(result) is int


def test_sad_refuses_what_is_no_mask() -> None:
    with pytest.raises(TypeError, match=r"bool masks, but got torch\.float32"):
        hf_nm.sad(torch.ones(4), torch.ones(4, dtype=torch.bool))
    with pytest.raises(TypeError, match="but got NoneType"):
        hf_nm.sad(bits("1100"), None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shapes are \(4,\) and \(1, 4\)"):
        hf_nm.sad(bits("1100"), bits("1100").unsqueeze(0))


def test_pack_literal() -> None:
    """Red if bits are packed from the other end, or the rest is not padded with zeros."""
    assert pack_bits(bits("10000000" + "01000001" + "11")).tolist() == [1, 130, 3]


@pytest.mark.parametrize(
    "shape", [(8,), (1,), (7,), (9,), (3, 5), (4, 16), (2, 3, 7), (0,), (129,)]
)
def test_pack_round_trip(shape: tuple[int, ...], device: torch.device) -> None:
    """Red if an entry is lost or moved, at sizes that eight does not divide too."""
    mask = (torch.rand(shape) < 0.5).to(device)
    packed = pack_bits(mask)
    assert packed.dtype == torch.uint8
    assert packed.shape == (-(-mask.numel() // 8),)
    assert torch.equal(unpack_bits(packed, mask.shape), mask)


def test_pack_every_byte() -> None:
    packed = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(pack_bits(unpack_bits(packed, torch.Size([2048]))), packed)


def test_pack_a_mask_that_is_not_contiguous() -> None:
    mask = (torch.rand(6, 10) < 0.5).T
    assert torch.equal(unpack_bits(pack_bits(mask), mask.shape), mask)


def test_history() -> None:
    """Red if references are confused, or net change and flips step by step are."""
    a, b, c = bits("1100"), bits("0110"), bits("0011")
    history = MaskHistory(a)
    history.add(torch.tensor(hf_nm.sad(a, b)))
    history.set_mark(b)
    history.add(torch.tensor(hf_nm.sad(b, c)))
    history.add(torch.tensor(hf_nm.sad(c, b)))
    assert (history.sad(b, "start"), history.sad(b, "mark")) == (2, 0)
    assert (history.sad(c, "start"), history.sad(c, "mark")) == (4, 2)
    assert (history.flipped("start"), history.flipped("mark")) == (6, 4)


def test_history_does_not_follow_the_mask_in_place() -> None:
    mask = bits("1100")
    history = MaskHistory(mask)
    mask.copy_(bits("0011"))
    assert history.sad(mask, "start") == 4


def test_history_state_round_trip() -> None:
    """Red if a counter or a reference mask is left out, or shared instead of copied."""
    history = MaskHistory(bits("1100"))
    history.add(torch.tensor(2))
    history.set_mark(bits("0110"))
    history.add(torch.tensor(4))
    state = history.state_dict()
    other = MaskHistory(bits("1111"))
    other.load_state_dict(state)
    for value in state.values():
        assert isinstance(value, torch.Tensor)
        value.zero_()
    now = bits("0011")
    assert (other.sad(now, "start"), other.sad(now, "mark")) == (4, 2)
    assert (other.flipped("start"), other.flipped("mark")) == (6, 4)


def test_rate() -> None:
    assert rate(6, [4, 8], 2) == 0.25
    assert rate(0, [4, 8], 0) == 0.0


def trained(steps: int, **options: object) -> tuple[hf_nm.Attachment, list[torch.Tensor]]:
    """One weight trained for some steps; the handle, and the mask before and after each step."""
    layer = hf_nm.NMLinear(16, 8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    handle = hf_nm.attach(optimizer, layer, **options)  # type: ignore[arg-type]
    masks = [layer.mask.clone()]
    for _ in range(steps):
        layer(torch.randn(4, 16)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        masks.append(layer.mask.clone())
    return handle, masks


def test_handle_counts() -> None:
    """Red if SAD sums steps instead of the net change, or the flip rate the reverse."""
    handle, masks = trained(10)
    steps = [hf_nm.sad(a, b) for a, b in itertools.pairwise(masks)]
    net = hf_nm.sad(masks[0], masks[-1])
    assert 0 < net < sum(steps)
    assert handle.sad() == net
    assert handle.flip_rate() == sum(steps) / (16 * 8 * 10)
    assert handle.sad_per_layer() == {"weight": net}
    assert handle.flips_per_layer() == {"weight": sum(steps)}
    assert handle.sad("mark") == net
    handle.mark()
    assert (handle.sad("mark"), handle.flip_rate("mark")) == (0, 0.0)
    assert handle.sad() == net


def test_masks_are_held_between_intervals() -> None:
    """Red if ``mask_interval`` or ``freeze_masks_at`` is off by one."""
    handle, masks = trained(9, mask_interval=3, freeze_masks_at=6)
    steps = [hf_nm.sad(a, b) for a, b in itertools.pairwise(masks)]
    moved = [index + 1 for index, flips in enumerate(steps) if flips]
    assert moved == [3, 6]
    assert handle.flips_per_layer() == {"weight": sum(steps)}


def test_unknown_reference() -> None:
    handle, _ = trained(1)
    with pytest.raises(ValueError, match="'start' or 'mark', but got 'beginning'"):
        handle.sad("beginning")
