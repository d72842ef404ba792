"""What is minimised, over which tokens: smoothed loss per target token of the whole update."""

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from batching import Collator, EvalBatchSampler, TokenBatchSampler, TokenDataLoader
from transformers.trainer_utils import EvalLoopOutput


def label_smoothed_loss(
    outputs: Any,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    *,
    smoothing: float,
) -> torch.Tensor:
    """Cross-entropy in nats against `(1 - smoothing) * one_hot + smoothing / vocabulary`.

    Args:
        outputs: a model output with `logits` [batch, target, vocabulary].
        labels: [batch, target], -100 where there is nothing to predict.
        num_items_in_batch: target tokens of the whole update, over accumulation and processes; the
            Trainer counts them and undoes DDP's average, so micro-batches of unequal size weigh by
            their tokens. Without it, the tokens of these labels are counted.

    Returns:
        The sum over these labels' tokens divided by `num_items_in_batch`.
    """
    logits = outputs["logits"].float()
    total = F.cross_entropy(
        logits.view(-1, logits.shape[-1]),
        labels.view(-1),
        reduction="sum",
        label_smoothing=smoothing,
    )
    return total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)


if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:  # it comes before whichever Trainer there is
    _Base = object


class TokenBatches(_Base):
    """Mixin for a Trainer: batches by token count, and an evaluation loss that weighs every token
    alike.

    Put it before the Trainer class, `class Trainer(TokenBatches, Seq2SeqTrainer)`, and set the two
    class attributes. The data sets need the columns `input_ids`, `labels`, `source_tokens` and
    `target_tokens`.
    """

    max_tokens: int
    sort_window: int

    @cached_property
    def train_sampler(self) -> TokenBatchSampler:
        return TokenBatchSampler(
            pair_lengths(self.train_dataset),
            self.max_tokens,
            batches_per_update=self.args.world_size * self.args.gradient_accumulation_steps,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            window=self.sort_window,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )

    def get_train_dataloader(self) -> TokenDataLoader:
        return self._loader(self.train_dataset, self.train_sampler)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> TokenDataLoader:
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        sampler = EvalBatchSampler(
            pair_lengths(dataset), self.max_tokens, self.args.process_index, self.args.world_size
        )
        return self._loader(dataset, sampler)

    def _loader(self, dataset: Any, sampler: Any) -> TokenDataLoader:
        # Not `accelerator.prepare`d: the sampler has dealt out the shares (see batching.py).
        tokenizer: Any = self.processing_class
        return TokenDataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=Collator(tokenizer.pad_token_id),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        )

    def get_total_train_batch_size(self, args: Any) -> int:
        """Mean sentence pairs of an update; the Trainer's samples per second rest on it."""
        updates = self.train_sampler.total // self.train_sampler.batches_per_update
        return round(len(self.train_sampler.sizes) / updates)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """`eval_loss` as in training, `eval_nll` unsmoothed: nats per token of the whole set."""
        model: Any = self.model
        loss: Any = self.compute_loss_func
        model.eval()
        sums = []  # per micro-batch: smoothed loss, plain loss, target tokens
        for inputs in dataloader:
            inputs = self._prepare_inputs(inputs)
            labels = inputs.pop("labels")
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = model(**inputs)
                smoothed = loss(outputs, labels, num_items_in_batch=1)
                plain = label_smoothed_loss(outputs, labels, num_items_in_batch=1, smoothing=0.0)
            sums.append((smoothed.item(), plain.item(), (labels != -100).sum().item()))
        sums = gather_object(sums)
        tokens = sum(row[2] for row in sums)
        # fsum is exact, so the figure does not depend on how the batches were dealt out.
        metrics = {
            f"{metric_key_prefix}_loss": math.fsum(row[0] for row in sums) / tokens,
            f"{metric_key_prefix}_nll": math.fsum(row[1] for row in sums) / tokens,
        }
        nothing: Any = None  # of predictions; the loss is what is asked for
        return EvalLoopOutput(
            predictions=nothing,
            label_ids=None,
            metrics=metrics,
            num_samples=len(dataloader.dataset),
        )


def pair_lengths(dataset: Any) -> np.ndarray:
    """[pairs, 2]: tokens of source and target, end-of-sentence included."""
    columns = dataset.with_format("numpy")
    return np.stack([columns["source_tokens"][:], columns["target_tokens"][:]], axis=1)
