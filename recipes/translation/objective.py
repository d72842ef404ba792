"""What is minimised, over which tokens: smoothed loss per target token of the whole update."""

import math
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

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
    class attributes. The data sets are `TokenRows`.

    Added to every log that has a training loss, over the updates since the log before and all processes:

    - `tokens_per_second`: tokens of source and target, without padding. Evaluation and what is between
      two logs' updates (such as saving right after a log) do not count as time.
    - `padding`: the share of padding among all positions of source and target.
    """

    max_tokens: int
    sort_window: int
    _tokens = _positions = 0  # of this process since the last log
    _seconds = 0.0  # spent otherwise meanwhile
    _since: float | None = None

    @cached_property
    def train_sampler(self) -> TokenBatchSampler:
        rows: Any = self.train_dataset
        return TokenBatchSampler(
            rows.lengths,
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
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        sampler = EvalBatchSampler(
            dataset.lengths, self.max_tokens, self.args.process_index, self.args.world_size
        )
        return self._loader(dataset, sampler)

    def _loader(self, dataset: Any, sampler: Any) -> TokenDataLoader:
        tokenizer: Any = self.processing_class
        return TokenDataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=Collator(tokenizer.pad_token_id),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        )

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if self._since is None:
            self._since = time.perf_counter()
        mask, labels = inputs["attention_mask"], inputs["labels"]  # not on the device yet
        self._tokens += int(mask.sum()) + int((labels != -100).sum())
        self._positions += mask.numel() + labels.numel()
        return super().training_step(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._since is not None:
            spent = time.perf_counter() - self._since - self._seconds
            counts = torch.tensor([self._tokens, self._positions], device=self.args.device)
            tokens, positions = self.accelerator.reduce(counts, "sum").tolist()
            logs = logs | {
                "tokens_per_second": tokens / spent,
                "padding": 1 - tokens / positions,
            }
            self._tokens = self._positions = 0
            self._seconds, self._since = 0.0, None
        super().log(logs, *args, **kwargs)

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
        started = time.perf_counter()
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
        self._seconds += time.perf_counter() - started
        nothing: Any = None  # of predictions; the loss is what is asked for
        return EvalLoopOutput(
            predictions=nothing,
            label_ids=None,
            metrics=metrics,
            num_samples=len(dataloader.dataset),
        )
