"""What a classifier minimises: the loss per image of the whole update."""

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
    """Cross-entropy in nats, per image of the whole update.

    Args:
        outputs: a model output with `logits` [batch, classes].
        labels: [batch], class numbers.
        num_items_in_batch: images of the whole update, over accumulation and processes.
        smoothing: the share of a target that is spread over all classes.
    """
    logits = outputs["logits"].float()
    total = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)
