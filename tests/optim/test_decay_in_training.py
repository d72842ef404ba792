"""``decay="auto"`` in training: what it follows, that it is saved, logged, and the same on all ranks."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from training import assert_same_state, loss_of, mask_of, masks, sparse_mlp, state_of

import hf_nm
from hf_nm.methods.auto_decay import DECAY, MEMORY, PULL
from hf_nm.optim import sad_log

# A step's size must not depend on the loss, so nothing may be added to the gradient's mean square.
OPTIMIZERS = {
    "adam": lambda params, scale: torch.optim.Adam(params, lr=0.02, eps=1e-30),
    "adamw": lambda params, scale: torch.optim.AdamW(params, lr=0.02, eps=1e-30),
    "sgd": lambda params, scale: torch.optim.SGD(params, lr=0.5 / scale, momentum=0.9),
}


def start(name="adamw", scale=1.0, *, decay="auto", options=None, **sparsify):
    model = sparse_mlp(decay=decay, **sparsify)
    optimizer = OPTIMIZERS[name](model.parameters(), scale)
    return model, optimizer, hf_nm.attach(optimizer, model, **options or {})


def train(model, optimizer, steps, scale=1.0):
    for step in steps:
        optimizer.zero_grad()
        (scale * loss_of(model, step)).backward()
        optimizer.step()


def decays(model):
    return {w.name: w.state.parts.extras[DECAY].item() for w in hf_nm.sparse_weights(model)}


def ratio(weight, gradient):
    """Mean squares, as the rule says them: of the gradient over that of the two kept of four."""
    kept = weight[weight != 0].double()
    assert kept.numel() == weight.numel() / 2
    return (gradient.double() ** 2).mean().item() / (kept**2).mean().item()


def test_every_step_adds_what_the_rule_says():
    """Red if the decay is of the gradient with the decay in it, of the dense weight, of the step before,
    or is not what the pruned part is multiplied by."""
    model, optimizer, handle = start("sgd", dtype=torch.float64)
    squares = {}
    for step in range(5):
        before = {}
        optimizer.zero_grad()
        loss_of(model, step).backward()
        for w in hf_nm.sparse_weights(model):
            before[w.name] = w.weight.grad.clone()
            now = PULL**2 * ratio(w.weight.detach(), w.weight.grad)
            mean = MEMORY * squares[w.name] + (1 - MEMORY) * now if step else now
            squares[w.name] = mean
        pruned = {w.name: w.state.aside.clone() for w in hf_nm.sparse_weights(model)}
        optimizer.step()
        for w in hf_nm.sparse_weights(model):
            decay = math.sqrt(squares[w.name])
            assert handle.meter.decays()[w.name] == pytest.approx(decay, rel=1e-5)
            torch.testing.assert_close(
                w.weight.grad, before[w.name] + decay * pruned[w.name], rtol=1e-5, atol=1e-9
            )
    assert all(part.any() for part in pruned.values())


@pytest.mark.parametrize("factor", [2.0**-10, 1024.0])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_loss_may_be_multiplied(name, factor):
    """Bit for bit the same masks and weights for a power of two (and SGD's learning rate divided by it).
    Red if anything of the rule is not proportional to the gradient; a number is not."""
    runs = {}
    for scale in (1.0, factor):
        model, optimizer, handle = start(name, scale)
        train(model, optimizer, range(20), scale)
        assert handle.sad() > 0
        runs[scale] = model, decays(model)
    assert_same_state(state_of(runs[factor][0]), state_of(runs[1.0][0]))
    for weight, decay in runs[1.0][1].items():
        assert runs[factor][1][weight] == factor * decay > 0
    fixed = []
    for scale in (1.0, factor):
        model, optimizer, _ = start(name, scale, decay=0.5)
        train(model, optimizer, range(20), scale)
        fixed.append(masks(model))
    assert any(not torch.equal(fixed[0][weight], fixed[1][weight]) for weight in fixed[0])


@pytest.mark.parametrize("fused", [False, True], ids=["unscaled", "fused"])
def test_the_loss_scale_of_a_grad_scaler(fused):
    """Red if the decay meets, or is computed from, gradients that still carry the scale; or if a step
    that was skipped for an overflow is one of those that it follows."""
    results = []
    for scale in (None, 1024.0):
        model = sparse_mlp(dtype=torch.float64, decay="auto")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, fused=fused)
        hf_nm.attach(optimizer, model)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for step in range(6):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            if step == 3 and scale is not None:
                scaler.scale(math.inf * loss).backward()
                scaler.step(optimizer)
                scaler.update(scale)
                optimizer.zero_grad()
                loss = loss_of(model, step)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append((decays(model), state_of(model)))
    (plain, plain_state), (scaled, scaled_state) = results
    assert scaled == pytest.approx(plain, rel=1e-6)
    for name in ("0.weight/dense", "2.weight/dense"):
        torch.testing.assert_close(scaled_state[name], plain_state[name], rtol=1e-6, atol=1e-9)


def test_accumulated_gradients():
    """Red if the decay follows each micro-batch, or a gradient that is not yet the step's."""
    whole, optimizer, _ = start("sgd", dtype=torch.float64)
    parts, other, _ = start("sgd", dtype=torch.float64)
    for step in range(4):
        optimizer.zero_grad()
        other.zero_grad()
        sum(loss_of(whole, 10 * step + i) / 4 for i in range(4)).backward()
        for i in range(4):
            (loss_of(parts, 10 * step + i) / 4).backward()
        optimizer.step()
        other.step()
    assert decays(parts) == pytest.approx(decays(whole), rel=1e-6)


def test_a_gradient_that_is_not_finite_leaves_it():
    """Red if one bad step makes the decay NaN for ever."""
    model, optimizer, _ = start("sgd")
    train(model, optimizer, range(2))
    before = decays(model)
    optimizer.zero_grad()
    model[0].weight.grad = torch.full_like(model[0].weight, math.nan)
    optimizer.step()
    assert decays(model) == before


@pytest.mark.parametrize("options", [{}, {"mask_interval": 3, "decay_warmup_steps": 8}], ids=str)
@pytest.mark.parametrize("order", ["model", "optimizer"])
def test_resumed_equals_uninterrupted(order, options, tmp_path):
    """Bit for bit. Red if the decay starts anew."""
    model, optimizer, _ = start(options=options)
    train(model, optimizer, range(5))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    train(model, optimizer, range(5, 12))
    resumed, other, _ = start(options=options)
    parts = {"model": resumed, "optimizer": other}
    for name in (order, *(parts.keys() - {order})):
        state = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        parts[name].load_state_dict(state)
    train(resumed, other, range(5, 12))
    assert decays(resumed) == decays(model)
    assert_same_state(state_of(resumed, other), state_of(model, optimizer))


@pytest.mark.parametrize(("before", "after"), [(0.05, "auto"), ("auto", 0.05)])
def test_resumed_with_the_other_kind_of_decay(before, after):
    """A warning, as for another number. Red if it is refused, or an old decay goes on."""
    model, optimizer, _ = start(decay=before)
    train(model, optimizer, range(3))
    changed, other, handle = start(decay=after)
    said = f"with decay {before}, now {after} \\(2 weights"
    with pytest.warns(UserWarning, match=said):
        other.load_state_dict(optimizer.state_dict())
    changed.load_state_dict(model.state_dict())
    assert handle.meter.decays() == dict.fromkeys(handle.meter.decays(), 0.0)
    train(changed, other, range(3, 6))
    assert all(value > 0 for value in handle.meter.decays().values())
    assert bool(handle.meter.decays()) == (after == "auto")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, third, _ = start(decay=after)
        third.load_state_dict(other.state_dict())


def test_warm_up_is_a_factor_on_it():
    """Red if the warm-up changes what is followed, or does nothing."""
    plain, optimizer, handle = start("sgd", dtype=torch.float64)
    rising, other, warming = start("sgd", dtype=torch.float64, options={"decay_warmup_steps": 4})
    pruned = hf_nm.sparse_weights(plain)[0].state.aside
    pruned.fill_(1.0).mul_(~mask_of(hf_nm.sparse_weights(plain)[0]))
    hf_nm.sparse_weights(rising)[0].state.aside.copy_(pruned)
    train(plain, optimizer, range(1))
    train(rising, other, range(1))
    assert decays(rising) == decays(plain)
    loss_of(sparse := sparse_mlp(dtype=torch.float64), 0).backward()
    whole, quarter = (m[0].weight.grad - sparse[0].weight.grad for m in (plain, rising))
    assert whole.any()
    torch.testing.assert_close(quarter, whole / 4, rtol=1e-6, atol=1e-12)
    whole = sad_log.measure(handle.meter, handle.schedule.decay_factor(handle.step))
    part = sad_log.measure(warming.meter, warming.schedule.decay_factor(warming.step))
    assert part["nm/decay"] == pytest.approx(whole["nm/decay"] / 4)


def test_what_is_logged():
    """Red if the mean is not over weights, or a number's runs get a key of their own."""
    model, optimizer, handle = start(options={"freeze_masks_at": 3})
    train(model, optimizer, range(2))
    measured = sad_log.measure(handle.meter)
    assert measured["nm/decay"] == pytest.approx(sum(decays(model).values()) / 2)
    assert {n: row["decay"] for n, row in measured["layers"].items()} == decays(model)
    assert sad_log.totals(measured).keys() >= {"nm/sad", "nm/decay"}
    train(model, optimizer, range(2, 5))
    assert "nm/decay" not in sad_log.totals(
        sad_log.measure(handle.meter)
    )  # nothing decays any more
    model, optimizer, handle = start(decay=0.1)
    train(model, optimizer, range(2))
    assert "nm/decay" not in sad_log.totals(sad_log.measure(handle.meter))


@pytest.mark.parametrize("method", ["ste", "fixed"])
def test_methods_without_a_decay_ignore_it(method):
    """As they do a number. Red if anything is computed or kept for it."""
    model, optimizer, handle = start(method=method)
    twin, other, _ = start(method=method, decay=0.1)
    train(model, optimizer, range(4))
    train(twin, other, range(4))
    assert_same_state(state_of(model), state_of(twin))
    assert handle.meter.decays() == {}
    assert all(w.state.parts.extras == {} for w in hf_nm.sparse_weights(model))


def test_closures_follow_every_evaluation():
    """Red if an optimizer that evaluates the loss inside its step trains without a decay."""
    model = sparse_mlp(decay="auto")
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    handle = hf_nm.attach(optimizer, model)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert all(value > 0 for value in handle.meter.decays().values())
    hf_nm.verify(model)


def test_casting_the_model_keeps_it():
    """Red if ``half()`` makes a small decay zero."""
    model, optimizer, _ = start()
    train(model, optimizer, range(2), scale=1e-9)
    before = decays(model)
    assert 0 < max(before.values()) < 1e-9
    model.half()
    assert decays(model) == before


def test_patterns_differ_by_layer():
    """Red if the kept entries are counted by one pattern for all weights."""
    model = sparse_mlp(decay="auto", patterns={"2": "1:8"})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = hf_nm.attach(optimizer, model)
    loss_of(model, 0).backward()
    expected = {
        w.name: PULL
        * w.weight.grad.square().mean().sqrt().item()
        / w.weight[w.weight != 0].square().mean().sqrt().item()
        for w in hf_nm.sparse_weights(model)
    }
    optimizer.step()
    assert handle.meter.decays() == pytest.approx(expected, rel=1e-5)
