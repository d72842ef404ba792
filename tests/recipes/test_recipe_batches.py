"""The translation recipe's batches, loss and vocabulary."""

import itertools

import numpy as np
import pytest
import torch
from recipe_loading import importing
from transformers import AutoTokenizer

with importing("translation"):
    from batching import Collator, EvalBatchSampler, TokenBatchSampler, pack
    from corpus import embedded_corpus
    from objective import label_smoothed_loss
    from tokenizer import train_bpe


@pytest.fixture(scope="module")
def lengths():
    return np.random.default_rng(0).integers(2, 40, size=(1500, 2))


def test_pack_literal():
    """Red if padding is not counted, or a full batch is closed one sentence late."""
    assert pack([0, 1, 2, 3, 4], [3, 4, 4, 5, 2], max_tokens=12) == [[0, 1, 2], [3, 4]]
    assert pack([0, 1], [7, 7], max_tokens=7) == [[0], [1]]
    assert pack([], [], max_tokens=7) == []


def test_token_limit_and_nothing_lost(lengths):
    """Red if a sentence is dropped, repeated, or a side grows over the limit."""
    sampler = TokenBatchSampler(lengths, 300, batches_per_update=4, window=256)
    for epoch in range(3):
        batches = sampler.global_batches(epoch)
        assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
        assert len(batches) == sampler.total == len(sampler)
        assert len(batches) % 4 == 0
        for batch in batches:
            assert (lengths[batch].max(axis=0) * len(batch) <= 300).all()


def test_epochs_differ_and_repeat(lengths):
    """Red if the shuffle ignores the epoch, the seed, or draws from global random state."""
    sampler = TokenBatchSampler(lengths, 300, window=256, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    np.random.seed(1)
    torch.manual_seed(1)
    assert first != second
    assert sorted(map(sorted, first)) != sorted(
        map(sorted, second)
    )  # other batches, not just order
    again = TokenBatchSampler(lengths, 300, window=256, seed=3)
    again.set_epoch(1)
    assert list(again) == second
    assert list(TokenBatchSampler(lengths, 300, window=256, seed=4)) != first


def test_two_processes_share_one_order(lengths):
    """Red if 2 processes x accumulation 2 do not see the updates of 1 process x accumulation 4."""
    options = {"batches_per_update": 4, "window": 256}
    alone = TokenBatchSampler(lengths, 300, **options)
    shares = [TokenBatchSampler(lengths, 300, rank=r, world_size=2, **options) for r in (0, 1)]
    for epoch in (0, 1):
        for sampler in (alone, *shares):
            sampler.set_epoch(epoch)
        dealt = [list(share) for share in shares]
        assert len(dealt[0]) == len(dealt[1]) == len(shares[0])
        merged = [batch for pair in zip(*dealt, strict=True) for batch in pair]
        assert merged == list(alone)


def test_evaluation_batches(lengths):
    """Red if evaluation leaves out or repeats a sentence over the processes."""
    shares = [list(EvalBatchSampler(lengths, 300, rank, 3)) for rank in range(3)]
    dealt = itertools.chain(*itertools.chain(*shares))
    assert sorted(dealt) == list(range(len(lengths)))


def test_batching_errors():
    """Red if a wrong setting hangs or loses data instead of saying so."""
    with pytest.raises(ValueError, match="longest sentence has 9 tokens and max_tokens is 8"):
        TokenBatchSampler(np.array([[3, 9]]), 8)
    with pytest.raises(ValueError, match="2 training sentences cannot fill 4 micro-batches"):
        TokenBatchSampler(np.array([[3, 3], [3, 3]]), 100, batches_per_update=4)
    with pytest.raises(ValueError, match="multiple of the number of processes, got 3 and 2"):
        TokenBatchSampler(np.ones((9, 2)), 100, batches_per_update=3, world_size=2)
    with pytest.raises(ValueError, match="no sentence pair is left"):
        TokenBatchSampler(np.zeros((0, 2)), 100)


def test_collator_literal():
    """Red if labels are padded with a counted token, or the decoder sees its own answer."""
    batch = Collator(pad_token_id=0)(
        [{"input_ids": [5, 6, 1], "labels": [7, 1]}, {"input_ids": [5, 1], "labels": [8, 9, 1]}]
    )
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 1], [5, 1, 0]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "decoder_input_ids": [[0, 7, 0], [0, 8, 9]],
        "labels": [[7, 1, -100], [8, 9, 1]],
    }


def test_label_smoothed_loss():
    """Red if padding is counted, smoothing leaves out a class, or the divisor is the batch's own."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 11, generator=generator, dtype=torch.float32)
    labels = torch.randint(11, (3, 5), generator=generator)
    labels[1, 3:] = -100
    loss = label_smoothed_loss({"logits": logits}, labels, num_items_in_batch=40, smoothing=0.1)
    kept = labels.view(-1) != -100
    rows, answers = logits.view(-1, 11)[kept].double(), labels.view(-1)[kept]
    target = torch.full_like(rows, 0.1 / 11).scatter_add(
        1, answers[:, None], torch.full((len(answers), 1), 0.9, dtype=torch.float64)
    )
    expected = -(target * rows.log_softmax(1)).sum() / 40
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    mean = torch.nn.functional.cross_entropy(
        logits.view(-1, 11), labels.view(-1), label_smoothing=0.1
    )
    alone = label_smoothed_loss({"logits": logits}, labels, smoothing=0.1)
    torch.testing.assert_close(alone, mean, rtol=1e-6, atol=0)


def test_tokenizer_round_trip(tmp_path):
    """Red if a byte is unknown, a space is lost, or "</s>" in a text ends it."""
    corpus = embedded_corpus().splits["train"][:500]
    tokenizer = train_bpe([text for pair in corpus for text in pair], 600)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "marian"}')
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [
        "Die Kühe, die wir sahen.",
        "  two  spaces ",
        "日本 ½ \t 🙂 \u2028 x",
        "a </s> b <pad> c",
        "",
        " ",
    ]
    for text in texts:
        ids = loaded(text)["input_ids"]
        assert ids[-1] == loaded.eos_token_id == 1
        assert ids.count(1) == 1
        assert loaded.pad_token_id not in ids
        assert loaded.decode(ids, skip_special_tokens=True) == text
        assert ids == tokenizer(text)["input_ids"]
    assert len(loaded) == 600
    # the joint vocabulary has whole frequent words of both languages
    assert {"Ġthe", "Ġhat", "Ġdie"} <= set(loaded.get_vocab())
