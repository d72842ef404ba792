"""What a sparse training step costs beside a dense one: Marian at Transformer-base size.

    python recipes/benchmark/training_step.py --rounds 30

Every round runs one whole step (forward, backward, optimizer) of each arm, one after the other, in
turning order, so that a noisy machine disturbs all arms alike. Reported: per round the ratio to that
round's dense step, as median and quartiles.

Arms: ``dense``; ``hf_nm`` (2:4 SR-STE, this package); ``autograd`` (the published way, written from the
paper's equations: the module keeps W and every forward builds E*W, the decay sits in backward). Others,
where ``--arms`` names them:

- ``compact``: ``hf_nm`` with ``compact_state=True``;
- ``interval``: with ``mask_interval=25``, of which the median is a step that holds its masks;
- ``frozen``: with masks frozen after the first step;
- ``dense_eval``, ``eval``: a forward pass without gradients; the ratio of the second is to the first;
- ``work``, ``copy``: hf_nm's work around a step alone, its optimizer does nothing; and a copy of as many
  bytes as that has to move at least, 36 a N:M weight. The ratio of the first is to the second.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measured import clock_of, quartiles, ratios, rounds_of
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


class Nothing(torch.optim.Optimizer):
    """An optimizer that leaves its parameters alone."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        pass


OPTIONS: dict[str, dict[str, Any]] = {
    "hf_nm": {},
    "compact": {"compact_state": True},
    "interval": {"mask_interval": 25},
    "frozen": {"freeze_masks_at": 1},
    "work": {},
}
BASES = {"eval": "dense_eval", "work": "copy"}  # what the ratio is to, where not to the dense step
BYTES_A_WEIGHT = 36  # S, R, the mask and the gradient read or written as often as no step can avoid


def make_arm(arm: str, args: argparse.Namespace) -> Callable[[], Any]:
    """A function that does once what the arm times."""
    device = torch.device(args.device)
    model = build_model(args.vocab_size, device)
    if arm == "copy":
        hf_nm.sparsify(model, 2, 4)
        return make_copy(sum(w.weight.numel() for w in hf_nm.sparse_weights(model)), device)
    if arm == "autograd":
        for target in find_targets(model, hf_nm.NMPattern(2, 4))[0]:
            for module, _ in target.owners:
                module.__class__ = AutogradLinear
    if arm in OPTIONS or arm == "eval":
        hf_nm.sparsify(model, 2, 4)
    optimizer: torch.optim.Optimizer
    if arm == "work":
        weights: list[Tensor] = [w.weight for w in hf_nm.sparse_weights(model)]
        optimizer = Nothing(weights, {})
        for weight in weights:
            weight.grad = torch.randn_like(weight)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    if arm in OPTIONS:
        hf_nm.attach(optimizer, model, **OPTIONS[arm])
    if arm == "work":
        return torch.no_grad()(optimizer.step)

    sentences = args.tokens // args.length
    generator = torch.Generator().manual_seed(1)
    size = (sentences, args.length)
    source = torch.randint(2, args.vocab_size, size, generator=generator).to(device)
    labels = torch.randint(2, args.vocab_size, size, generator=generator).to(device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.bf16)

    def forward() -> Tensor:
        with autocast:
            loss: Tensor = model(input_ids=source, labels=labels).loss
        return loss

    def step() -> None:
        forward().backward()
        optimizer.step()
        optimizer.zero_grad()

    if arm in ("eval", "dense_eval"):
        model.eval()
        return torch.no_grad()(forward)
    return step


def make_copy(weights: int, device: torch.device) -> Callable[[], Any]:
    """Copies that read and write ``BYTES_A_WEIGHT`` bytes for each of so many weights."""
    size = min(weights * BYTES_A_WEIGHT // 2, 1 << 28)  # far more than a cache holds
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    whole, rest = divmod(weights * BYTES_A_WEIGHT // 2, size)

    def copy() -> None:
        for _ in range(whole):
            target.copy_(source)
        target[:rest].copy_(source[:rest])

    return copy


def measure(
    arms: dict[str, Callable[[], Any]], times: dict[str, list[float]], args: argparse.Namespace
) -> None:
    """Fill in seconds by arm, a round in turning order after the other."""
    device = torch.device(args.device)
    rounds_of(arms, device, 0, args.warmup)
    for number in range(args.rounds):
        turn = number % len(arms)
        order = dict([*arms.items()][turn:] + [*arms.items()][:turn])
        found = rounds_of(order, device, 1, 0, clock_of(args))
        for arm, seconds in found.items():
            times[arm] += seconds


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
    parser.add_argument(
        "--cpu_time", action="store_true", help="count CPU time: one thread on a busy machine"
    )
    parser.add_argument("--json", type=Path, default=None, help="also write the figures here")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    missing = {BASES.get(arm, "dense") for arm in args.arms} - set(args.arms)
    if missing:
        parser.error(f"--arms has no {sorted(missing)}, which ratios are to; add them")

    arms = {arm: make_arm(arm, args) for arm in args.arms}
    times: dict[str, list[float]] = {arm: [] for arm in args.arms}
    try:
        measure(arms, times, args)
    except KeyboardInterrupt:
        print(f"stopped after {min(map(len, times.values()))} rounds")
    counted = min(map(len, times.values()))
    if not counted:
        parser.exit(1, "nothing was measured\n")
    times = {arm: seconds[:counted] for arm, seconds in times.items()}

    machine = environment()
    print(json.dumps(machine))
    print(
        f"Transformer-base Marian, vocabulary {args.vocab_size}, {args.tokens} tokens a side, "
        f"{'bf16 autocast' if args.bf16 else 'fp32'}, fused AdamW, {args.device}, "
        f"{torch.get_num_threads()} threads, {'CPU' if args.cpu_time else 'wall'} time, "
        f"{counted} interleaved rounds\n"
    )
    print("| arm | ms: median (quartiles) | ratio to | median (quartiles) |")
    print("|---|---|---|---|")
    rows = {}
    for arm in args.arms:
        low, middle, high = quartiles([1000 * seconds for seconds in times[arm]])
        r_low, r_middle, r_high = ratios(times[arm], times[BASES.get(arm, "dense")])
        rows[arm] = {"ms": [low, middle, high], "ratio": [r_low, r_middle, r_high]}
        print(
            f"| {arm} | {middle:.0f} ({low:.0f} to {high:.0f}) "
            f"| {BASES.get(arm, 'dense')} | {r_middle:.3f} ({r_low:.3f} to {r_high:.3f}) |"
        )
    if args.json:
        arguments = {key: str(value) for key, value in vars(args).items()}
        record = {"arguments": arguments, "machine": machine, "arms": rows, "seconds": times}
        args.json.write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
