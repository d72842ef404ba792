"""What packing, unpacking, loading and verifying cost in memory and bytes: peak RSS of each in a process
of its own.

    python recipes/benchmark/packed.py --gib 1

Two checkpoints in bf16, 2:4: ``tensor``, a folder with one huge weight, and ``model``, a Llama of the
same size in shards of a quarter of it. Peak RSS is Linux's (``VmHWM``); beside it what the
process held after its imports. ``load (plain)`` is transformers' own loading, to compare with;
``load (compressed)`` and ``load, compress`` leave the weights packed in memory. After a load one forward
pass runs; then ``after it`` is the resident memory, and ``without files`` (``RssAnon``) what of it the
process has for itself, files that are only mapped left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import hf_nm
from hf_nm.environment import environment

GIB = 1 << 30
JOBS = {
    "verify": "hf_nm.verify(a)",
    "pack": "hf_nm.pack(a, b)",
    "verify (packed)": "hf_nm.verify(b)",
    "unpack": "hf_nm.unpack(b, c)",
    "load (packed)": "hf_nm.load_packed(b)",
    "load (plain)": "transformers.LlamaForCausalLM.from_pretrained(a)",
    "load (compressed)": "hf_nm.load_packed(b, compressed=True)",
    "load, compress": "hf_nm.compress(transformers.LlamaForCausalLM.from_pretrained(a))",
}
RUN = """
import json, sys, time
import torch
torch.set_num_threads(1)
import hf_nm
a, b, c, job = sys.argv[1:]
if "load" in job or "Llama" in job:
    import transformers
    transformers.LlamaForCausalLM, hf_nm.load_packed, hf_nm.compress
def of(line):
    status = open("/proc/self/status").read()  # ru_maxrss would begin with the parent's
    return int(status.split(line + ":")[1].split()[0]) / 1024
before, start = of("VmHWM"), time.perf_counter()
held = eval(job)
seconds = time.perf_counter() - start
if "load" in job:  # what is mapped from a file is not the model's own until it is read
    with torch.no_grad():
        tokens = torch.arange(3, 11)[None]
        logits = held(tokens).logits.double()
        sums = [logits.sum().item(), logits.abs().sum().item()]
else:
    sums = None
print(json.dumps([before, of("VmHWM"), seconds, of("VmRSS"), of("RssAnon"), sums]))
"""


def write_tensor(folder: Path, size: int) -> None:
    """A folder with one weight of ``size`` bytes, and its claim."""
    folder.mkdir()
    weight = torch.randn(size // 2 // 8192, 8192).to(torch.bfloat16)
    weight = torch.where(hf_nm.nm_mask(weight, 2, 4), weight, 0.0)
    save_file({"weight": weight}, folder / "model.safetensors", metadata={"format": "pt"})
    manifest = {"version": 1, "n": 2, "m": 4, "method": "sr-ste", "decay": 2e-4}
    manifest |= {"modules": {"weight": "2:4"}, "hf_nm": hf_nm.__version__}
    (folder / "config.json").write_text(json.dumps({"nm_sparsity": manifest}))


def write_model(folder: Path, size: int) -> None:
    """A Llama of about ``size`` bytes, in shards of a quarter of that."""
    layers = max(1, round(size / 2 / (3 * 2048 * 8192 + 4 * 2048 * 2048)))
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        dtype="bfloat16",
    )
    model: Any = LlamaForCausalLM(config)
    model = hf_nm.sparsify(model.to(torch.bfloat16))
    model.save_pretrained(folder, max_shard_size=size // 4)


def weight_bytes(folder: Path) -> int:
    """Bytes of all safetensors files of a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def write(file: Path | None, results: dict[str, Any]) -> None:
    """Write what is known so far, where a file is named."""
    if file is not None:
        file.write_text(json.dumps(results, indent=1), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=1.0, help="size of each checkpoint")
    parser.add_argument("--tiny", action="store_true", help="0.02 GiB, which shows that it runs")
    parser.add_argument("--json", type=Path, default=None, help="also write the figures here")
    parser.add_argument("--kinds", nargs="+", default=["tensor", "model"], help="which checkpoints")
    args = parser.parse_args()
    size = int((0.02 if args.tiny else args.gib) * GIB)
    results: dict[str, Any] = {"environment": environment(), "bytes": size}
    writers = {"tensor": write_tensor, "model": write_model}
    for kind, write_checkpoint in [(kind, writers[kind]) for kind in args.kinds]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_checkpoint(folder / "a", size)
            paths = [str(folder / part) for part in "abc"]
            for label, job in JOBS.items():
                if "load" in label and kind == "tensor":
                    continue
                command = [sys.executable, "-c", RUN, *paths, job]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                before, peak, seconds, *after = json.loads(done.stdout.splitlines()[-1])
                resident, own, outputs = after
                results[f"{kind}, {label}"] = {"before": before, "peak": peak, "seconds": seconds}
                results[f"{kind}, {label}"] |= {"after": resident, "own": own, "outputs": outputs}
                write(args.json, results)
                print(
                    f"{kind:7} {label:17} {before:5.0f} MiB before, peak {peak:5.0f}, "
                    f"after it {resident:5.0f}, without files {own:5.0f}, {seconds:.1f} s"
                )
            ratio = weight_bytes(folder / "b") / weight_bytes(folder / "a")
            results[f"{kind}, ratio"] = ratio
            write(args.json, results)
            print(f"{kind:7} packed / dense = {ratio:.4f} of {weight_bytes(folder / 'a'):,} bytes")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
