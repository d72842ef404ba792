"""What only a GPU can show; everything else runs on each device by the ``device`` fixture."""

from __future__ import annotations

import json
from pathlib import Path

import accelerated
import pytest
import torch
from launching import quiet_port, run_python
from training import assert_sparse, example, sparse_mlp

import hf_nm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_fsdp2_by_accelerate(tmp_path: Path) -> None:
    """NMTrainer under ``fsdp_version: 2`` with values on rank 0 alone, sharded checkpoints, resume. Red
    if masks are lost on the meta device or in accelerate's checkpoints."""
    arguments = [
        *("-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2"),
        *("--main_process_port", quiet_port()),
        *("--num_processes", str(torch.cuda.device_count()), "--mixed_precision", "no"),
        *("--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"),
        *("--fsdp_transformer_layer_cls_to_wrap", "BertLayer"),
        *("--fsdp_cpu_ram_efficient_loading", "true"),
        *("--fsdp_state_dict_type", "SHARDED_STATE_DICT"),
    ]
    run_python(*arguments, accelerated.__file__, tmp_path)
    logs = json.loads((tmp_path / "logs.json").read_text())
    assert logs["whole"][0]["nm/sad"] > 0
    later = [line for line in logs["whole"] if line["step"] > 6]
    for line, same in zip([x for x in logs["resumed"] if x["step"] > 6], later, strict=True):
        assert line["loss"] == pytest.approx(same["loss"], rel=1e-5)
        assert line | {"loss": 0} == same | {"loss": 0}
    report = hf_nm.verify(tmp_path / "whole" / "final")
    assert 2 * report.kept == report.weights > 0


@pytest.mark.parametrize("fused", [True, False])
def test_grad_scaler(fused: bool) -> None:
    """An overflow skips a step on the GPU, too. Red if it moves masks or counts."""
    model = sparse_mlp().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=fused)
    handle = hf_nm.attach(optimizer, model)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10, growth_interval=1000)
    for step in range(4):
        optimizer.zero_grad()
        x = torch.randn(8, 16, device="cuda")
        with torch.autocast("cuda", torch.float16):
            loss = model(x).float().square().mean()
        scaler.scale(loss * (float("inf") if step == 1 else 1.0)).backward()
        before = [w.mask.clone() for w in hf_nm.sparse_weights(model)]
        scaler.step(optimizer)
        scaler.update()
        if step == 1:
            assert handle.step == 1
            for w, mask in zip(hf_nm.sparse_weights(model), before, strict=True):
                assert torch.equal(w.mask, mask)
    assert handle.step == 3
    assert_sparse(model)


def test_same_masks_as_on_the_cpu() -> None:
    """Float64 training on both devices. Red if a GPU breaks ties another way, or loses pruned parts."""
    found = []
    for device in ("cpu", "cuda"):
        model = sparse_mlp(dtype=torch.float64).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        hf_nm.attach(optimizer, model)
        for step in range(5):
            inputs, targets = (x.to(device) for x in example(step, dtype=torch.float64))
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
        found.append([w.mask.cpu() for w in hf_nm.sparse_weights(model)])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
