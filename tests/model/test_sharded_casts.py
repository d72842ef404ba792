"""A model under FSDP2 is cast and moved as a dense one is."""

from __future__ import annotations

import pytest
import torch
from sharded_net import loss_of, new_model, shard

import hf_nm


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.usefixtures("single_process_group")
def test_cast_and_moved(swap: bool) -> None:
    """Red if something that watches the parameters keeps torch from replacing them (``float()``,
    ``cpu()``, torch's swap flag), or masks and pruned parts stay behind."""
    model = shard(new_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hf_nm.attach(optimizer, model)
    loss_of(model, 0, None).backward()
    optimizer.step()
    before = {w.name: w.dense_weight().full_tensor() for w in hf_nm.sparse_weights(model)}
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        model.float().cpu().double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    for w in hf_nm.sparse_weights(model):
        rounded = before[w.name].float().double()
        assert torch.equal(w.dense_weight().full_tensor(), rounded), w.name
    again = torch.optim.SGD(model.parameters(), lr=0.1)
    hf_nm.attach(again, model)
    loss_of(model, 1, None).backward()
    again.step()
    hf_nm.verify(model)
