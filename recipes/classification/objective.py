"""What is minimised: the loss per example of the whole update."""

from typing import Any

import torch
import torch.nn.functional as F


def classification_loss(
    outputs: Any,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    *,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """Cross-entropy in nats, or the squared error of a regression, per example of the whole update.

    Args:
        outputs: a model output with `logits` [batch, classes], or [batch, 1] for a regression.
        labels: [batch], class numbers or floats.
        num_items_in_batch: examples of the whole update, over accumulation and processes.
        smoothing: the share of a target that is spread over all classes.
    """
    logits = outputs["logits"].float()
    if logits.shape[-1] == 1:
        total = F.mse_loss(logits.squeeze(-1), labels.float(), reduction="sum")
    else:
        total = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)
