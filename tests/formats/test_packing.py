"""One weight, packed and unpacked: bit for bit, whatever it holds, as the format is documented."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hf_nm import NMPattern, PackedError, nm_mask
from hf_nm.formats.packed_weight import (
    DTYPES,
    Layout,
    is_packed,
    loses_bits,
    pack_run,
    unpack_tensor,
)

# Shape, input dimension, pattern: linear, Conv1D, transposed experts, convolution, large groups.
KINDS = [
    ((6, 16), -1, "2:4"),
    ((12, 5), -2, "1:3"),
    ((3, 10, 7), -2, "3:5"),
    ((4, 6, 3, 3), -3, "2:3"),
    ((2, 128), -1, "1:64"),
    ((9,), -1, "8:9"),
]


def sparse(dtype: torch.dtype, shape: tuple[int, ...], dim: int, pattern: NMPattern) -> Tensor:
    """Random bits (NaNs with payloads, infinities, minus zeros among them) that keep a pattern, every
    third entry of the kept ones zero."""
    size = torch.empty((), dtype=dtype).element_size()
    entries = math.prod(shape)
    raw = torch.randint(0, 256, (entries * size,), dtype=torch.uint8)
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    bits = raw.view(integer).clone()
    bits[::3] = 0
    bits[1] = torch.iinfo(integer).min  # minus zero
    mask = nm_mask(torch.randn(shape), pattern.n, pattern.m, dim)
    return (bits.view(shape) * mask).view(dtype)


def packed(weight: Tensor, layout: Layout) -> Tensor:
    """The documented bytes of a weight."""
    values, mask = pack_run(weight.contiguous().view(layout.integer).view(-1), layout)
    values, mask = values.view(torch.uint8), mask.view(torch.uint8)
    parts = [
        torch.frombuffer(bytearray(layout.description()), dtype=torch.uint8),
        torch.nn.functional.pad(values, (0, layout.values_size - len(values))),
        torch.nn.functional.pad(mask, (0, layout.mask_size - len(mask))),
    ]
    return torch.cat(parts)


def unpack_slowly(data: bytes) -> list[bytes]:
    """The entries of a packed weight, read as the documentation says, one at a time."""
    assert data[:8] == b"nm_pack1"
    length = int.from_bytes(data[8:16], "little")
    description = json.loads(data[16 : 16 + length])
    size = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}[
        description["dtype"]
    ]
    entries = math.prod(description["shape"])
    values = data[16 + length :]
    kept = entries // description["m"] * description["n"]
    mask = values[-(-kept * size // 8) * 8 :]
    found, used = [], 0
    for index in range(entries):
        if mask[index // 8] >> (index % 8) & 1:
            found.append(values[used * size : (used + 1) * size])
            used += 1
        else:
            found.append(bytes(size))
    assert used == kept
    return found


@pytest.mark.parametrize("name", list(DTYPES))
@pytest.mark.parametrize(("shape", "dim", "pattern"), KINDS)
def test_packed_bit_for_bit(name: str, shape: tuple[int, ...], dim: int, pattern: str) -> None:
    """Red if a bit of a kept entry changes, or an entry moves, or the bytes are not the documented."""
    layout = Layout(name, shape, NMPattern.parse(pattern), dim)
    weight = sparse(DTYPES[name], shape, dim, layout.pattern)
    data = packed(weight, layout)
    assert len(data) == layout.size
    assert is_packed(data)
    back = unpack_tensor(data)
    assert (back.dtype, back.shape) == (weight.dtype, weight.shape)
    expected = weight.contiguous().view(torch.uint8).view(-1)
    assert torch.equal(back.view(torch.uint8).view(-1), expected)
    entries = b"".join(unpack_slowly(bytes(data.tolist())))
    assert entries == bytes(expected.tolist())


def test_runs_are_whole_groups_and_whole_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if a weight that is larger than a run is cut within a group, or within a byte of its mask."""
    monkeypatch.setattr("hf_nm.formats.packed_weight._PIECE", 64)
    for shape, dim, text in KINDS:
        layout = Layout("BF16", shape, NMPattern.parse(text), dim)
        runs = list(layout.runs())
        assert sum(length for _, length in runs) == math.prod(shape)
        assert all(first % 8 == 0 and first % layout.unit == 0 for first, _ in runs)
        weight = sparse(torch.bfloat16, shape, dim, layout.pattern)
        back = unpack_tensor(packed(weight, layout))
        assert torch.equal(back.view(torch.int16), weight.view(torch.int16))


def test_size() -> None:
    """2:4 in bf16 takes 9/16 of its bytes, and a description."""
    layout = Layout("BF16", (512, 512), NMPattern(2, 4), -1)
    assert layout.size == 512 * 512 * 2 * 9 // 16 + len(layout.description())


def test_minus_zero_where_pruned() -> None:
    """Red if a group whose pruned entries hold bits is packed as if it did not."""
    layout = Layout("F32", (1, 8), NMPattern(2, 4), -1)
    weight = torch.tensor([[1.0, -0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 3.0]])
    assert not loses_bits(weight.view(torch.int32).view(-1), layout)
    weight[0, 3] = -0.0
    assert loses_bits(weight.view(torch.int32).view(-1), layout)


def replaced(data: Tensor, old: bytes, new: bytes) -> Tensor:
    text = bytes(data.tolist())
    assert old in text
    assert len(old) == len(new)
    return torch.tensor(list(text.replace(old, new)), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-8], "it has .* bytes, but 2:4 of .* needs"),
        (lambda data: data[:20], "does not begin as a packed weight"),
        (lambda data: replaced(data, b"nm_pack1", b"nm_pack2"), "does not begin"),
        (lambda data: replaced(data, b'"n": 2', b'"n": 9'), "description is not valid"),
        (lambda data: replaced(data, b'"n": 2', b'"n": 1'), "needs"),
        (lambda data: replaced(data, b'"BF16"', b'"I16" '), "one of the dtypes"),
        (lambda data: replaced(data, b'"dim": -1', b'"dim": -9'), "dim must be"),
        (lambda data: replaced(data, b"[6, 16]", b"[6,160]"), "needs"),
        (lambda data: replaced(data, b"[6, 16]", b"[9e99] "), "shape must be"),
        (lambda data: replaced(data, b"[6, 16]", b'"6, 16"'), "shape must be"),
        (lambda data: replaced(data, b"[6, 16]", b"[-6,-4]"), "shape must be"),
        (lambda data: replaced(data, b"{", b"["), "description is not valid"),
        (lambda data: torch.cat([data[:-16], data[-16:].flip(0) + 1]), "mask does not keep 2"),
    ],
)
def test_not_a_packed_weight(change: Callable[[Tensor], Tensor], message: str) -> None:
    """Red if bytes that cannot be a packed weight are read as one."""
    layout = Layout("BF16", (6, 16), NMPattern(2, 4), -1)
    data = packed(sparse(torch.bfloat16, (6, 16), -1, layout.pattern), layout)
    with pytest.raises(PackedError, match=message):
        unpack_tensor(change(data))


def test_sizes_are_judged_before_memory_is_taken() -> None:
    """Red if a description of 2**47 entries is believed."""
    layout = Layout("BF16", (6, 16), NMPattern(2, 4), -1)
    for shape in ([1 << 47], [1 << 40, 1 << 40], [1 << 62]):
        text = json.dumps({"dtype": "BF16", "shape": shape, "n": 2, "m": 4, "dim": -1}).encode()
        text += b" " * (-len(text) % 8)
        data = layout.description()[:8] + len(text).to_bytes(8, "little") + text + bytes(64)
        with pytest.raises(PackedError):
            Layout.read(data, len(data))
