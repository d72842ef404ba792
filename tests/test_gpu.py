"""What only a GPU can show; everything else runs on each device by the ``device`` fixture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import accelerated
import pytest
import torch
from launching import quiet_port, run_python
from tolerances import assert_same_bits
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


def stepped(
    method: str, dtype: torch.dtype, decay: float | str = 0.05, **schedule: int
) -> list[torch.Tensor]:
    """Masks and dense weights after six steps, and the counts of flips."""
    model = sparse_mlp(dtype=dtype, decay=decay, method=method).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
    handle = hf_nm.attach(optimizer, model, **schedule)
    for step in range(6):
        inputs, targets = (x.cuda() for x in example(step, dtype=dtype))
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), targets).backward()
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        optimizer.step()
        torch.cuda.set_sync_debug_mode("default")
    counts = torch.tensor(list(handle.flips_per_layer().values()))
    weights = hf_nm.sparse_weights(model)
    return [counts, *(w.mask.cpu() for w in weights), *(w.dense_weight().cpu() for w in weights)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("method", "schedule"),
    [
        ("sr-ste", {}),
        ("sr-ste", {"decay": "auto"}),
        ("sr-ste", {"mask_interval": 3}),
        ("sr-ste", {"freeze_masks_at": 2}),
        ("ste", {}),
        ("fixed", {}),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*most small updates round away")
def test_kernels_train_as_the_torch_functions(
    method: str, schedule: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if the fused kernels give another bit than torch's functions, or a step waits."""
    from hf_nm.sparsity.kernels import table

    assert table.usable(torch.device("cuda", 0)), "the kernels do not run here"
    found = stepped(method, dtype, **schedule)
    monkeypatch.setenv("HF_NM_KERNELS", "0")
    for one, other in zip(found, stepped(method, dtype, **schedule), strict=True):
        assert_same_bits(one, other)


def test_cuda_graphs() -> None:
    """Forward and backward in a graph train as without; a step inside one is refused. Red if a hook
    waits for the device in a capture, or a captured step goes unnoticed."""
    results = []
    for captured in (False, True):
        model = sparse_mlp(decay=0.05).cuda()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, capturable=True)
        hf_nm.attach(optimizer, model)
        inputs, targets = (x.cuda() for x in example(0))

        def gradients(model=model, inputs=inputs, targets=targets) -> None:
            torch.nn.functional.mse_loss(model(inputs), targets).backward()

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # as torch's documentation warms up
            for _ in range(3):
                optimizer.zero_grad()
                gradients()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        optimizer.zero_grad()
        if captured:
            with torch.cuda.graph(graph):
                gradients()
        for step in range(4):
            for static, value in zip((inputs, targets), example(step), strict=True):
                static.copy_(value)
            if captured:
                graph.replay()
            else:
                optimizer.zero_grad()
                gradients()
            optimizer.step()
        assert_sparse(model)
        results.append([w.dense_weight().cpu() for w in hf_nm.sparse_weights(model)])
        if captured:
            other = torch.cuda.CUDAGraph()
            with torch.cuda.graph(other):
                inputs.mul_(1.0)  # torch warns of an empty graph
                with pytest.raises(RuntimeError, match="CUDA graph"):
                    optimizer.step()
    for one, other in zip(*results, strict=True):
        assert_same_bits(one, other)
