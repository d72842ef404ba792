"""Damage done to packed checkpoints, thousands of times: each must end in an error that names it, or in
the same weights.

    python recipes/benchmark/fuzz.py --cases 10000

Kinds of damage: bits flipped, bytes overwritten, cut out, put in, swapped or cut off, in a packed file;
numbers and names in its header or in a weight's description replaced by hostile ones, and the checksums
made right again (``forged``); values and bytes of ``config.json`` (the manifest, the list of files) and
of the index replaced. After each, ``unpack`` and ``verify`` must raise one of hf_nm's errors (a
``ValueError``, or ``FileNotFoundError`` for a file that is not there), or ``unpack`` must give the same
tensors. A forged file may hold other numbers (a checksum is no signature), but must not crash, hang or
take memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

import hf_nm

HEADER_KEY = "nm_packed_sha256"
HOSTILE: list[Any] = [0, -1, 1, 3, 1 << 31, 1 << 47, (1 << 63) - 1, 1 << 64, 10**400, 1.5, True]
HOSTILE += ["", "2:4", "4:2", "0:4", "1:8", "9" * 5000 + ":4", "../x", "a\0b", "x" * 600]
HOSTILE += [None, [], {}, [1, 2], [1 << 40, 1 << 40], {"a": 1}]
DEEP = "[" * 100_000


class HangError(Exception):
    """A case took longer than ten seconds."""


def build(folder: Path) -> None:
    """A tiny sparse BERT, plain and packed, in one file (``plain``, ``packed``) and in shards
    (``plain-shards``, ``packed-shards``)."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=16,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
    )
    model = hf_nm.sparsify(BertForSequenceClassification(config))
    for name, size in (("", "1GB"), ("-shards", "6KB")):
        model.save_pretrained(folder / f"plain{name}", max_shard_size=size)
        hf_nm.pack(folder / f"plain{name}", folder / f"packed{name}")


def tensor_bytes(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Every tensor of a plain folder: dtype, shape and bytes, read without any library."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8 : 8 + length]).items():
            if name != "__metadata__":
                first, last = (8 + length + offset for offset in entry["data_offsets"])
                found[name] = (entry["dtype"], entry["shape"], data[first:last])
    return found


def damage_bytes(data: bytes, random_: random.Random) -> bytes:
    """One of seven kinds of damage to a file of any kind."""
    changed, size = bytearray(data), len(data)
    at, other = random_.randrange(size), random_.randrange(size)
    length = random_.choice([1, 1, 4, 64, 1000])
    kind = random_.randrange(7)
    if kind == 0:
        changed[at] ^= 1 << random_.randrange(8)
    elif kind == 1:
        changed[at] = random_.randrange(256)
    elif kind == 2:
        del changed[at:]
    elif kind == 3:
        del changed[at : at + length]
    elif kind == 4:
        changed[at:at] = random_.randbytes(length)
    elif kind == 5:
        changed += random_.randbytes(length)
    else:
        first, second = changed[at : at + length], changed[other : other + length]
        changed[at : at + len(second)] = second
        changed[other : other + len(first)] = first
    return bytes(changed)


def damage_value(data: Any, random_: random.Random) -> None:
    """Replace, remove or add one value somewhere in a JSON object, in place."""
    places = list[tuple[Any, Any]]()

    def walk(inner: Any) -> None:
        keys = inner.keys() if isinstance(inner, dict) else range(len(inner))
        for key in list(keys):
            places.append((inner, key))
            if isinstance(inner[key], dict | list):
                walk(inner[key])

    walk(data)
    inner, key = random_.choice(places)
    kind = random_.randrange(4)
    if kind == 0 and isinstance(inner, dict):
        del inner[key]
    elif kind == 1 and isinstance(inner, dict):
        inner[random_.choice(["x", "", "weight", "..", key + "x"])] = inner.pop(key)
    elif kind == 2 and type(inner[key]) is int:
        inner[key] += random_.choice([-1, 1, 8])
    else:
        inner[key] = random_.choice(HOSTILE)


def sign(header: dict[str, Any]) -> bytes:
    """A header's bytes, its length before them, with the checksum that they should have."""
    metadata = header.get("__metadata__")
    if isinstance(metadata, dict):
        metadata[HEADER_KEY] = "0" * 64
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    ours = f'"{HEADER_KEY}":"%s"'
    checksum = hashlib.sha256(text).hexdigest()
    text = text.replace((ours % ("0" * 64)).encode(), (ours % checksum).encode())
    return len(text).to_bytes(8, "little") + text


def forge(data: bytes, random_: random.Random) -> bytes:
    """A packed file with something hostile in it, and all checksums right."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    ours = json.loads(header["__metadata__"]["nm_packed"])
    name = random_.choice(ours["packed"])
    first, last = header[name]["data_offsets"]
    kind = random_.randrange(4)
    if kind == 0:  # in a description
        described = int.from_bytes(body[first + 8 : first + 16], "little")
        description = json.loads(body[first + 16 : first + 16 + described])
        damage_value(description, random_)
        text = json.dumps(description).encode()[:described].ljust(described)
        body[first + 16 : first + 16 + described] = text
    elif kind == 1:  # in the bytes of a packed weight
        at = random_.randrange(first, last)
        body[at] ^= 1 << random_.randrange(8)
    elif kind == 2:  # in the list of packed weights and checksums
        damage_value(ours, random_)
    else:  # in the header
        damage_value(
            {key: value for key, value in header.items() if key != "__metadata__"}, random_
        )
    if kind < 2:
        ours["sha256"][name] = hashlib.sha256(body[first:last]).hexdigest()
    header["__metadata__"]["nm_packed"] = json.dumps(ours)
    return sign(header) + bytes(body)


def damage(folder: Path, random_: random.Random) -> str:
    """Damage a packed folder; what was damaged."""
    kind = random_.choice(
        ["file"] * 4 + ["forged"] * 2 + ["config"] * 2 + ["manifest"] * 2 + ["index"]
    )
    files = sorted(folder.glob("*.safetensors"))
    config, index = folder / "config.json", folder / "model.nm_packed.safetensors.index.json"
    path = random_.choice(files)
    if kind == "file":
        path.write_bytes(damage_bytes(path.read_bytes(), random_))
    elif kind == "forged":
        path = max(files, key=lambda file: file.stat().st_size)
        forged = forge(path.read_bytes(), random_)
        path.write_bytes(forged)
        metadata = json.loads(forged[8 : 8 + int.from_bytes(forged[:8], "little")])["__metadata__"]
        data = json.loads(config.read_text())
        data["quantization_config"]["files"][path.name] = metadata[HEADER_KEY]
        config.write_text(json.dumps(data))
    elif kind == "index" and index.is_file():
        damage_json(index, [], random_)
    elif kind == "manifest":
        damage_json(config, random_.choice([["nm_sparsity"], ["nm_sparsity", "modules"]]), random_)
    else:
        kind = "config"
        damage_json(config, random_.choice([[], ["quantization_config"]]), random_)
    return kind


def damage_json(path: Path, where: list[str], random_: random.Random) -> None:
    """Damage a value under ``where`` in a JSON file, or its bytes, or its depth."""
    kind = random_.randrange(8)
    if kind == 0:
        path.write_bytes(damage_bytes(path.read_bytes(), random_))
    elif kind == 1:
        path.write_text(DEEP)
    else:
        data = inner = json.loads(path.read_text())
        for key in where:
            inner = inner[key]
        damage_value(inner, random_)
        path.write_text(json.dumps(data))


def outcome(job: Callable[[], Any]) -> str:
    """How a job ended: an error's name, ``"done"``, or ``"BAD ..."`` for what must not happen."""
    try:
        job()
    except hf_nm.PackedError:
        return "PackedError"
    except (ValueError, FileNotFoundError) as error:
        kind = "FileNotFoundError" if isinstance(error, FileNotFoundError) else "ValueError"
        return kind if "hf_nm" in str(type(error)) or raised_by_hf_nm(error) else f"BAD {error!r}"
    except Exception as error:
        return f"BAD {error!r}"
    return "done"


def raised_by_hf_nm(error: BaseException) -> bool:
    """Whether the error is one that hf_nm's own lines raise."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "hf_nm" in trace.tb_frame.f_code.co_filename


def run_case(built: Path, scratch: Path, seed: int, *, load: bool = False) -> str:
    """Damage a copy and use it: ``"what: how unpack ended, how verify ended"``.

    Args:
        built: what :func:`build` wrote.
        scratch: an empty folder, empty again afterwards.
        seed: of the damage.
        load: whether to load a model too, if a file is damaged.
    """
    random_ = random.Random(seed)
    name = random_.choice(["", "-shards"])
    copied, plain = scratch / "packed", scratch / "plain"
    shutil.copytree(built / f"packed{name}", copied)
    what = damage(copied, random_)
    unpacked = outcome(lambda: hf_nm.unpack(copied, plain))
    if unpacked == "done":
        same = tensor_bytes(plain) == tensor_bytes(built / f"plain{name}")
        unpacked = "the same weights" if same else "other weights"
        if not same and what != "forged":
            unpacked = "BAD other weights"
    elif plain.exists():
        unpacked = "BAD something is left behind"
    ended = [f"unpack {unpacked}", f"verify {outcome(lambda: hf_nm.verify(copied))}"]
    if load and what == "file":
        ended.append(f"load {outcome(lambda: hf_nm.load_packed(copied))}")
    left = {path.name for path in scratch.iterdir()} - {"packed", "plain"}
    if left:
        ended.append(f"BAD left {left}")
    for path in scratch.iterdir():
        shutil.rmtree(path)
    return f"{what}: {', '.join(ended)}"


def hang(*_: Any) -> None:
    raise HangError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        built, scratch = Path(folder) / "built", Path(folder) / "scratch"
        built.mkdir()
        scratch.mkdir()
        build(built)
        hf_nm.load_packed(built / "packed")  # everything is imported, and has its memory
        signal.signal(signal.SIGALRM, hang)
        status = Path("/proc/self/status").read_text()
        taken = int(status.split("VmSize:")[1].split()[0]) * 1024
        # What asks for more than this fails, and is counted as bad.
        resource.setrlimit(resource.RLIMIT_AS, (taken + (256 << 20), resource.RLIM_INFINITY))
        for seed in range(arguments.seed, arguments.seed + arguments.cases):
            signal.alarm(10)
            ended = run_case(built, scratch, seed, load=seed % 10 == 0)
            signal.alarm(0)
            counts[ended] += 1
            if "BAD" in ended:
                print(seed, ended)
    for ended, count in sorted(counts.items()):
        print(f"{count:6} {ended}")
    bad = sum(count for ended, count in counts.items() if "BAD" in ended)
    print(f"{sum(counts.values())} cases, {bad} bad")
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
