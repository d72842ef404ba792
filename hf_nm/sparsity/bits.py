"""Tensors as bits: the memory of a float read as integers, masks packed eight to a byte."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

INTEGER_OF_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

# Multiplying eight bytes of 0 or 1 by this gathers them in the top byte of the product.
_GATHER_BITS = 0x0102040810204080

# The way back, eight bytes at once: a byte eight times, one bit of each left, and that made a 1.
_REPEAT_BYTE = 0x0101010101010101
_BIT_OF_EACH = -0x7FBFDFEFF7FBFDFF  # 0x8040201008040201 as a signed number
_CARRY_TO_TOP = 0x7F7F7F7F7F7F7F7F


@torch.no_grad()
def fingerprint(weight: Tensor) -> int:
    """Tells whether two tensors of one shape and dtype hold the same bits: the sum of those bits as
    integers (not for adversaries). Waits for the device."""
    return int(as_integers(weight).sum(dtype=torch.int64))


def as_integers(tensor: Tensor) -> Tensor:
    """The same memory read as signed integers of the same width."""
    return tensor.detach().view(INTEGER_OF_SIZE[tensor.element_size()])


def pack_bits(mask: Tensor) -> Tensor:
    """Eight mask entries to a byte: bool of any shape to uint8 ``[ceil(numel / 8)]``, zero-padded."""
    flat = mask.reshape(-1)
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % 8))
    words = padded.view(torch.uint8).view(torch.int64) * _GATHER_BITS
    return (words >> 56).to(torch.uint8)


def unpack_bits(packed: Tensor, shape: torch.Size) -> Tensor:
    """Undo :func:`pack_bits`: uint8 ``[ceil(numel / 8)]`` to bool of ``shape``."""
    words = packed.to(torch.int64).mul_(_REPEAT_BYTE).bitwise_and_(_BIT_OF_EACH)
    words.add_(_CARRY_TO_TOP).bitwise_right_shift_(7).bitwise_and_(_REPEAT_BYTE)
    return words.view(torch.bool).view(-1)[: shape.numel()].view(shape)


@functools.lru_cache(maxsize=64)
def byte_positions(n: int, m: int, device: torch.device) -> Tensor:
    """Where in a byte of a mask its kept entries lie, for patterns whose ``m`` divides 8.

    Args:
        n: entries kept of every group.
        m: entries of a group: 1, 2, 4 or 8.
        device: where the table is wanted.

    Returns:
        int64 ``[256, 8 / m * n]``: for every byte the positions of its ones, lowest first. Rows of bytes
        that no mask of this pattern has are zeros.
    """
    kept = 8 // m * n
    ones = unpack_bits(torch.arange(256, dtype=torch.uint8), torch.Size([256, 8]))
    valid = ones.view(256, 8 // m, m).sum(2).eq(n).all(1)
    table = torch.zeros(256, kept, dtype=torch.int64)
    table[valid] = ones[valid].nonzero()[:, 1].view(-1, kept)
    return table.to(device)


def count_bits(packed: Tensor) -> Tensor:
    """How many bits of a uint8 tensor are set: int64 scalar tensor. Its values are overwritten."""
    half = packed.bitwise_right_shift(1).bitwise_and_(0x55)
    packed.sub_(half)  # pairs of bits hold how many of them were set
    half = packed.bitwise_right_shift(2).bitwise_and_(0x33)
    packed.bitwise_and_(0x33).add_(half)
    half = packed.bitwise_right_shift(4)
    return packed.add_(half).bitwise_and_(0x0F).sum(dtype=torch.int64)
