"""What a sparse training step costs beside a dense one: Marian at Transformer-base size.

    python recipes/benchmark/training_step.py --rounds 30

Every round runs one whole step (forward, backward, optimizer) of each arm, one after the other, in
turning order, so that a noisy machine disturbs all arms alike. Reported: per round the ratio to that
round's dense step, as median and quartiles.

Arms: ``dense``; ``hf_nm`` (2:4 SR-STE, this package); ``compact`` (the same with
``compact_state=True``, where ``--arms`` names it); ``autograd`` (the published way, written from the
paper's equations: the module keeps W and every forward builds E*W, the decay sits in backward).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MarianConfig, MarianMTModel

import hf_nm
from hf_nm.environment import environment
from hf_nm.targets.rule import find_targets


class MaskedWeight(torch.autograd.Function):
    """Forward E*W; backward g(S) + decay * (1-E)*W (the SR-STE update of Zhou et al. 2021)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, n: int, m: int, decay: float) -> Tensor:
        groups = weight.detach().abs().view(-1, m)
        dropped = groups.argsort(dim=1)[:, : m - n]
        mask = torch.ones_like(groups).scatter_(1, dropped, 0.0).view(weight.shape)
        ctx.save_for_backward(weight, mask)
        ctx.decay = decay
        return weight * mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        weight, mask = ctx.saved_tensors
        return gradient + ctx.decay * (1 - mask) * weight, None, None, None


class AutogradLinear(nn.Linear):
    """A linear layer that keeps the dense weight and masks it in every forward."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, MaskedWeight.apply(self.weight, 2, 4, 2e-4), self.bias)


def build_model(vocab_size: int, device: torch.device) -> MarianMTModel:
    """Vaswani's Transformer-base: 6 + 6 layers, width 512, feed-forward 2048, 8 heads."""
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=vocab_size,
        d_model=512,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        activation_function="relu",
        pad_token_id=0,
        eos_token_id=1,
        forced_eos_token_id=1,
        decoder_start_token_id=0,
        max_position_embeddings=512,
    )
    model: Any = MarianMTModel(config)
    return model.to(device).train()


def make_step(arm: str, args: argparse.Namespace) -> Callable[[], float]:
    """A function that runs one training step of ``arm`` and returns its wall time in seconds."""
    device = torch.device(args.device)
    model = build_model(args.vocab_size, device)
    if arm == "autograd":
        for target in find_targets(model, hf_nm.NMPattern(2, 4))[0]:
            for module, _ in target.owners:
                module.__class__ = AutogradLinear
    if arm in ("hf_nm", "compact"):
        hf_nm.sparsify(model, 2, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    if arm in ("hf_nm", "compact"):
        hf_nm.attach(optimizer, model, compact_state=arm == "compact")
    sentences = args.tokens // args.length
    generator = torch.Generator().manual_seed(1)
    size = (sentences, args.length)
    source = torch.randint(2, args.vocab_size, size, generator=generator).to(device)
    labels = torch.randint(2, args.vocab_size, size, generator=generator).to(device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.bf16)

    def step() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        with autocast:
            loss = model(input_ids=source, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return step


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30, help="interleaved rounds (default 30)")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before measuring (default 2)")
    parser.add_argument("--tokens", type=int, default=512, help="tokens per side and step")
    parser.add_argument("--length", type=int, default=32, help="tokens per sentence")
    parser.add_argument("--vocab_size", type=int, default=37000, help="joint vocabulary")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast (weights stay fp32)")
    parser.add_argument("--arms", nargs="+", default=["dense", "hf_nm", "autograd"])
    parser.add_argument("--json", type=Path, default=None, help="also write the figures here")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    steps = {arm: make_step(arm, args) for arm in args.arms}
    times: dict[str, list[float]] = {arm: [] for arm in args.arms}
    for round_number in range(-args.warmup, args.rounds):
        turn = round_number % len(args.arms)
        for arm in args.arms[turn:] + args.arms[:turn]:
            seconds = steps[arm]()
            if round_number >= 0:
                times[arm].append(seconds)

    machine = environment()
    print(json.dumps(machine))
    print(
        f"Transformer-base Marian, vocabulary {args.vocab_size}, {args.tokens} tokens a side, "
        f"{'bf16 autocast' if args.bf16 else 'fp32'}, fused AdamW, {args.device}, "
        f"{torch.get_num_threads()} threads, {args.rounds} interleaved rounds\n"
    )
    print("| arm | step, ms: median (quartiles) | ratio to dense: median (quartiles) |")
    print("|---|---|---|")
    rows = {}
    for arm in args.arms:
        ratios = [mine / dense for mine, dense in zip(times[arm], times["dense"], strict=True)]
        low, middle, high = quartiles([1000 * seconds for seconds in times[arm]])
        r_low, r_middle, r_high = quartiles(ratios)
        rows[arm] = {"ms": [low, middle, high], "ratio": [r_low, r_middle, r_high]}
        print(
            f"| {arm} | {middle:.0f} ({low:.0f} to {high:.0f}) "
            f"| {r_middle:.3f} ({r_low:.3f} to {r_high:.3f}) |"
        )
    if args.json:
        arguments = {key: str(value) for key, value in vars(args).items()}
        record = {"arguments": arguments, "machine": machine, "arms": rows, "seconds": times}
        args.json.write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
