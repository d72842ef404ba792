"""Weights that a transformer uses in several places: one N:M weight, decayed once a step."""

from __future__ import annotations

import models
import pytest
import torch
from reference import Reference, patterns_of
from torch import nn
from training import assert_equals_reference, assert_sparse
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    EncoderDecoderModel,
)

import hf_nm

SIZES = {
    "vocab_size": models.VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def tie(one: nn.Module, other: nn.Module) -> int:
    """Give ``other`` the weights of ``one``, linear layer by linear layer."""
    tied = 0
    others = dict(other.named_modules())
    for name, module in one.named_modules():
        if isinstance(module, nn.Linear):
            others[name].weight = module.weight
            tied += 1
    return tied


def tied_bert() -> tuple[nn.Module, int]:
    """Encoder and decoder as in BERT2BERT, sharing all but the cross attention: 2 x 6 weights shared,
    2 x 4 more."""
    torch.manual_seed(0)
    encoder = BertModel(BertConfig(**SIZES), add_pooling_layer=False)
    decoder = BertLMHeadModel(BertConfig(**SIZES, is_decoder=True, add_cross_attention=True))
    model = EncoderDecoderModel(encoder=encoder, decoder=decoder)
    model.config.decoder_start_token_id = model.config.pad_token_id = 0
    assert tie(encoder.encoder, decoder.bert.encoder) == 12
    return model, 12 + 8


def tied_t5() -> tuple[nn.Module, int]:
    """Self attention shared by the stacks: 2 x 4 weights, 2 x 4 more of the cross attention, and 2 x 2
    feed-forward weights, shared too."""
    model = models.t5(d_model=16, d_kv=8, d_ff=32, num_heads=2)
    for encoder, decoder in zip(model.encoder.block, model.decoder.block, strict=True):
        assert tie(encoder.layer[0], decoder.layer[0]) == 4
        assert tie(encoder.layer[1], decoder.layer[2]) == 2
    return model, 8 + 8 + 4


def albert() -> tuple[nn.Module, int]:
    """One layer, applied three times."""
    torch.manual_seed(0)
    config = AlbertConfig(**SIZES | {"num_hidden_layers": 3}, embedding_size=8, num_labels=3)
    return AlbertForSequenceClassification(config), 6


def loss_of(forward, kind, step):
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(3, models.VOCABULARY, (4, 6), generator=generator)
    labels = tokens[:, 0] % 3 if kind is albert else tokens[:, :4].clone()
    return forward(input_ids=tokens, labels=labels).loss


# EncoderDecoderModel says at every forward that it computes the loss since transformers 4.12
@pytest.mark.filterwarnings("ignore:Version v4.12.0 introduces:FutureWarning")
@pytest.mark.parametrize("kind", [tied_bert, tied_t5, albert])
def test_steps_equal_the_reference(kind):
    """Red if the decay enters once per use, or a weight with two names is projected or counted twice."""
    (model, count), (twin, _) = kind(), kind()
    model, twin = (m.eval().double() for m in (model, twin))
    hf_nm.sparsify(model, decay=0.1)
    weights = hf_nm.sparse_weights(model)
    assert len(weights) == count
    assert len({id(w.weight) for w in weights}) == count
    reference = Reference(twin, patterns_of(hf_nm.report(model).layers), decay=0.1)
    optimizer, other = (torch.optim.SGD(m.parameters(), lr=1.0) for m in (model, twin))
    handle = hf_nm.attach(optimizer, model)
    for step in range(6):
        optimizer.zero_grad()
        other.zero_grad()
        loss_of(model, kind, step).backward()
        loss_of(reference, kind, step).backward()
        optimizer.step()
        reference.step(other)
        assert_equals_reference(model, reference)
        assert_sparse(model)
    assert handle.sad() > 0
