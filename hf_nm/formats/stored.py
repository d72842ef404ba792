"""What a saved checkpoint holds, plain or packed: named tensors that can be read a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from hf_nm.formats.folder import (
    PACKED_INDEX,
    PACKED_SINGLE,
    Count,
    weight_files,
    weight_map,
)
from hf_nm.formats.manifest import Claims
from hf_nm.formats.packed_config import (
    QUANTIZATION,
    is_packed_config,
    packed_files,
)
from hf_nm.formats.packed_file import KEY, PackedFile, plain_runs
from hf_nm.formats.packed_weight import DTYPES, Layout, PackedError
from hf_nm.formats.safetensors_file import TensorFile
from hf_nm.sparsity.pattern import NMPattern


class StoredTensor:
    """One tensor of a checkpoint, not read yet.

    Args:
        file: the file that holds it.
        name: its name there.

    Attributes:
        dtype: safetensors' name of its dtype, unpacked.
        shape: its shape, unpacked.
        size: bytes that it takes in the file.
        layout: of a packed weight, else None.
    """

    def __init__(self, file: TensorFile | PackedFile, name: str) -> None:
        self._file, self.name = file, name
        plain = file.file if isinstance(file, PackedFile) else file
        entry = plain.entries[name]
        self._plain, self.size = plain, entry.size
        self.layout = file.layouts.get(name) if isinstance(file, PackedFile) else None
        self.dtype = entry.dtype if self.layout is None else self.layout.dtype
        self.shape = entry.shape if self.layout is None else self.layout.shape

    @property
    def torch_dtype(self) -> torch.dtype:
        """Its dtype, where a weight of that dtype can be N:M; else uint8."""
        return DTYPES.get(self.dtype, torch.uint8)

    def runs(self, pattern: NMPattern, dim: int) -> Iterator[Tensor]:
        """Its entries in the order of memory, in runs of whole groups: flat, as signed integers.

        Args:
            pattern: what it should follow.
            dim: its input dimension, negative.
        """
        if isinstance(self._file, PackedFile) and self.layout is not None:
            return self._file.runs(self.name)
        layout = Layout(self.dtype, self.shape, pattern, dim)
        return plain_runs(self._plain, self.name, layout)

    def read_packed(self) -> tuple[Tensor, Tensor] | None:
        """A packed weight's kept entries and mask as they are in the file; None where this is none.

        Returns:
            Flat, of the weight's dtype; and uint8, one bit for each entry in the order of its memory.
        """
        if not isinstance(self._file, PackedFile) or self.layout is None:
            return None
        kept, mask = self._file.parts(self.name)
        return kept.view(self.torch_dtype), mask

    def read(self) -> Tensor:
        """All of it."""
        if isinstance(self._file, PackedFile) and self.layout is not None:
            bits = torch.cat(list(self._file.runs(self.name)))
            return bits.view(self.torch_dtype).view(self.shape)
        with safe_open(self._plain.path, framework="pt") as opened:
            return opened.get_tensor(self.name)


class Stored:
    """A checkpoint's files, open for reading.

    Args:
        files: all of them.
        packed: whether they are packed.

    Attributes:
        tensors: name to tensor.
        packed: whether the files are packed.
        size: bytes of all tensors.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged (``PackedError`` where packed), or two hold the same tensor.
    """

    def __init__(self, files: list[Path], *, packed: bool) -> None:
        self.packed, self._opened = packed, list[TensorFile | PackedFile]()
        self.tensors: dict[str, StoredTensor] = {}
        try:
            for path in files:
                opened = PackedFile(path) if packed else TensorFile(path)
                self._opened.append(opened)
                plain = opened.file if isinstance(opened, PackedFile) else opened
                for name in plain.entries:
                    if name in self.tensors:
                        raise (PackedError if packed else ValueError)(
                            f"{name} stands in more than one file (the second: {path})"
                        )
                    self.tensors[name] = StoredTensor(opened, name)
        except BaseException:
            self.close()
            raise
        self.size = sum(tensor.size for tensor in self.tensors.values())

    def check(self, count: Count) -> None:
        """Compare packed files with their checksums, byte for byte."""
        for opened in self._opened:
            if isinstance(opened, PackedFile):
                opened.check(count)

    @property
    def checksums(self) -> dict[str, str]:
        """File name to header checksum, of packed files."""
        return {
            opened.path.name: opened.checksum
            for opened in self._opened
            if isinstance(opened, PackedFile)
        }

    @property
    def packed_files(self) -> list[PackedFile]:
        """The files, where packed."""
        return [opened for opened in self._opened if isinstance(opened, PackedFile)]

    def close(self) -> None:
        """Close the files."""
        for opened in self._opened:
            opened.close()

    def __enter__(self) -> Stored:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_folder(folder: Path, config: dict[str, Any]) -> Stored:
    """Open the weights of a folder, plain or packed.

    Args:
        folder: where they are.
        config: its ``config.json``.

    Raises:
        FileNotFoundError: a file is missing.
        PackedError: a packed file is damaged, or is not the one that the config names.
        ValueError: a plain file is.
    """
    if not is_packed_config(config):
        return Stored(weight_files(folder), packed=False)
    expected = packed_files(config[QUANTIZATION])
    stored = Stored([folder / file for file in sorted(expected)], packed=True)
    try:
        check_files(stored, expected)
        if expected.keys() != {PACKED_SINGLE}:
            index = folder / PACKED_INDEX
            if not index.is_file():
                raise FileNotFoundError(f"{index} is missing, which names the files of the folder")
            mapped = {
                name: file.path.name for file in stored.packed_files for name in file.file.entries
            }
            if weight_map(index) != mapped:
                raise PackedError(f"{index} does not list the tensors of the files beside it")
    except BaseException:
        stored.close()
        raise
    return stored


def open_file(path: Path) -> Stored:
    """Open one safetensors file, plain or packed."""
    with TensorFile(path) as file:
        packed = KEY in file.metadata
    return Stored([path], packed=packed)


def check_files(stored: Stored, expected: dict[str, str]) -> None:
    """Raise :class:`PackedError` unless these are the packed files that the config names."""
    if stored.checksums != expected:
        wrong = sorted(stored.checksums.items() ^ expected.items())
        raise PackedError(
            f"{wrong[0][0]} is not the file that config.json was written with; pack again, or copy "
            "the folder as a whole"
        )


def check_claims(stored: Stored, claims: Claims) -> None:
    """Raise :class:`PackedError` where packed weights are packed otherwise than the manifest claims."""
    elsewhere = {claims[name][0] for name in claims.keys() - stored.tensors.keys()}
    for name, tensor in stored.tensors.items():
        if tensor.layout is None:
            continue
        packed = tensor.layout.pattern, tensor.layout.dim
        if name in claims:
            if claims[name] != packed:
                pattern, dim = claims[name]
                raise PackedError(
                    f"{name} is packed as {packed[0]} along dimension {packed[1]}, but config.json "
                    f"claims {pattern} along {dim}; one of them was changed"
                )
        elif packed[0] not in elsewhere:
            raise PackedError(
                f"{name} is packed, but config.json does not claim that it is N:M; one of them was "
                "changed"
            )
