"""``docs/pages/other_tools.md`` is executed, and its averages are compared with plain ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import local_sgd
import models
import pytest
import torch
from launching import run_python
from sentences import sentence, sentence_transformer, tokenizer
from tolerances import assert_close
from torch.utils.data import DataLoader, TensorDataset
from training import assert_same_state, assert_sparse, state_of

import hf_nm

PAGE = (Path(__file__).parents[1] / "docs" / "pages" / "other_tools.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- needs: (\w+) -->\n```python\n(.*?)```", PAGE, flags=re.DOTALL)

pytestmark = [
    # PEFT and TRL call what transformers renames in version 6
    pytest.mark.filterwarnings("ignore:`\\w*gradient_checkpointing\\w*` is deprecated"),
    # Lightning's advice on workers, logs and checkpoints of runs as small as these
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    # Lightning uses what torch is leaving
    pytest.mark.filterwarnings("ignore:.*isinstance\\(treespec, LeafSpec\\)"),
    # PEFT 0.18 looks on the Hub for the config of a model without a name
    pytest.mark.filterwarnings("ignore:Could not find a config file in  -:UserWarning"),
    # said in the page, and tested in tests/optim/test_peft.py
    pytest.mark.filterwarnings("ignore:merging adapters"),
]


def run_blocks(tool: str, names: dict[str, Any]) -> dict[str, Any]:
    """Execute the page's blocks of a tool, one after the other."""
    pytest.importorskip(tool, reason="the page's blocks on it need it")
    blocks = [code for needed, code in BLOCKS if needed == tool]
    assert blocks
    for number, code in enumerate(blocks, 1):
        exec(compile(code, f"docs/pages/other_tools.md, {tool}, block {number}", "exec"), names)
    return names


def batches() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(32, 32, generator=generator)
    return DataLoader(TensorDataset(inputs, inputs[:, :4].argmax(1)), batch_size=8)


def lightning_names(folder: Path) -> dict[str, Any]:
    options = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(folder),
    }
    return {"batches": batches(), "options": options}


def test_every_block_names_its_tool() -> None:
    assert len(BLOCKS) == PAGE.count("```python")
    assert {tool for tool, _ in BLOCKS} == {
        "lightning",
        "accelerate",
        "sentence_transformers",
        "peft",
        "trl",
    }


@pytest.fixture
def lightning_page(tmp_path: Path) -> dict[str, Any]:
    return run_blocks("lightning", lightning_names(tmp_path / "page"))


def test_lightnings_ema_is_that_of_the_dense_weights(lightning_page, tmp_path: Path) -> None:
    """Red if sparse weights are averaged, if the average is pruned each time before more is added, or if
    the trained model is not the average in the end."""
    lightning = lightning_page["lightning"]
    expected: dict[str, torch.Tensor] = {}

    class Recorder(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args) -> None:
            for w in hf_nm.sparse_weights(pl_module):
                dense = w.dense_weight()
                old = expected.get(w.name, dense)
                expected[w.name] = 0.9 * old + 0.1 * dense

    callback = lightning_page["on_dense_weights"](lightning_page["EMAWeightAveraging"](decay=0.9))
    model = lightning_page["Classifier"]()
    options = lightning_page["options"] | {"default_root_dir": str(tmp_path)}
    lightning.Trainer(max_epochs=3, callbacks=[Recorder(), callback], **options).fit(
        model, batches()
    )
    assert_sparse(model)
    for w in hf_nm.sparse_weights(model):
        assert_close(w.dense_weight(), expected[w.name], w.name)
        assert torch.equal(w.mask, hf_nm.nm_mask(w.dense_weight(), 2, 4))


@pytest.mark.parametrize("kind", ["EMAWeightAveraging", "StochasticWeightAveraging"])
def test_lightnings_averages_resume(kind, lightning_page, tmp_path: Path) -> None:
    """Red if the average's pruned part is lost in the checkpoint: resumed runs then end elsewhere."""
    lightning = lightning_page["lightning"]
    settings = {"decay": 0.9} if kind.startswith("EMA") else {"swa_lrs": 0.01, "swa_epoch_start": 1}

    def fit(folder: Path, **fit_options: Any):
        torch.manual_seed(0)
        callback = lightning_page["on_dense_weights"](lightning_page[kind](**settings))
        saver = lightning.pytorch.callbacks.ModelCheckpoint(folder, save_top_k=-1, every_n_epochs=1)
        options = lightning_page["options"] | {"default_root_dir": str(folder)}
        trainer = lightning.Trainer(max_epochs=4, callbacks=[callback, saver], **options)
        model = lightning_page["Classifier"]()
        trainer.fit(model, batches(), **fit_options)
        assert_sparse(model)
        return state_of(model)

    whole = fit(tmp_path / "whole")
    (checkpoint,) = (tmp_path / "whole").glob("epoch=2-*.ckpt")
    assert_same_state(fit(tmp_path / "again", ckpt_path=checkpoint, weights_only=False), whole)


def test_lightning_without_the_wrapper_is_refused(lightning_page, tmp_path: Path) -> None:
    """What the page is for. Red if Lightning averages sparse weights without a word."""
    lightning = lightning_page["lightning"]
    callback = lightning_page["EMAWeightAveraging"](decay=0.9)
    options = lightning_page["options"] | {"default_root_dir": str(tmp_path)}
    trainer = lightning.Trainer(max_epochs=1, callbacks=[callback], **options)
    with pytest.raises(hf_nm.BrokenPatternError, match="dense_weights"):
        trainer.fit(lightning_page["Classifier"](), batches())


def test_accelerates_local_sgd_page() -> None:
    """In one process, where nothing is averaged."""
    run_blocks("accelerate", local_sgd.start() | {"loader": batches()})


@pytest.mark.slow
def test_accelerates_local_sgd_in_two_processes(tmp_path: Path) -> None:
    """Two processes end with one state: that of two models that train apart in one process, whose dense
    weights are averaged at the eighth step and at the end. Red if sparse weights are averaged, or
    each process keeps a mask of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run_python(*launcher, f"--log-dir={tmp_path / 'logs'}", local_sgd.__file__, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert_same_state(first, second)

    runs = [local_sgd.start() for _ in range(2)]
    for run in runs:
        hf_nm.attach(run["optimizer"], run["model"])
    one, two = (run["model"] for run in runs)
    everything = local_sgd.data()
    steps = len(everything) // 2
    for step in range(steps):
        for rank, run in enumerate(runs):
            inputs, labels = everything[2 * step + rank]
            run["optimizer"].zero_grad()
            torch.nn.functional.cross_entropy(run["model"](inputs), labels).backward()
            run["optimizer"].step()
        if (step + 1) % 8 == 0 or step + 1 == steps:
            with hf_nm.dense_weights(one), hf_nm.dense_weights(two), torch.no_grad():
                for left, right in zip(one.parameters(), two.parameters(), strict=True):
                    left.copy_((left + right) / 2)
                    right.copy_(left)
    for name, tensor in state_of(one).items():
        if tensor.dtype == torch.bool:
            assert torch.equal(first[name], tensor), name
        else:
            assert_close(first[name], tensor, name)


def test_sentence_transformers_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    st = pytest.importorskip("sentence_transformers", reason="the page's block on it needs it")
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    sentence_transformer(Path("my-org/my-encoder"))
    rows = {
        "anchor": [sentence(row) for row in range(8)],
        "positive": [sentence(row + 1) for row in range(8)],
    }
    args = st.SentenceTransformerTrainingArguments(
        "run", max_steps=2, report_to=[], use_cpu=True, dataloader_pin_memory=False
    )
    run_blocks("sentence_transformers", {"pairs": datasets.Dataset.from_dict(rows), "args": args})


def test_peft_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    models.llama().save_pretrained("my-org/my-llama")
    run_blocks("peft", {})


def test_trl_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trl = pytest.importorskip("trl", reason="the page's block on it needs it")
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    models.llama(vocab_size=len(tokenizer())).save_pretrained("my-org/my-llama")
    rows = {
        "prompt": [sentence(row) for row in range(8)],
        "chosen": [" " + sentence(row + 1) for row in range(8)],
        "rejected": [" " + sentence(row + 2) for row in range(8)],
    }
    args = trl.DPOConfig(
        "run", max_steps=2, report_to=[], use_cpu=True, bf16=False, dataloader_pin_memory=False
    )
    names = {"preferences": datasets.Dataset.from_dict(rows), "dpo_args": args}
    run_blocks("trl", names | {"tokenizer": tokenizer()})
