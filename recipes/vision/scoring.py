"""What a saved checkpoint says of images: its plain pipeline's answers."""

from collections.abc import Iterator
from typing import Any

from labelled import LabelledRows
from PIL import Image
from transformers import ImageClassificationPipeline
from transformers.utils.logging import tqdm


def answers(
    classify: ImageClassificationPipeline, rows: LabelledRows, batch_size: int, quiet: bool = False
) -> list[int]:
    """The class numbers that the pipeline gives to images.

    Args:
        classify: the checkpoint's pipeline.
        rows: the images.
        batch_size: images at a time.
        quiet: no progress bar.
    """

    def opened() -> Iterator[Image.Image]:
        for i in range(len(rows)):
            yield rows.open(i)

    number: Any = classify.model.config.label2id
    pipeline: Any = classify  # its annotations know no iterator
    found = pipeline(opened(), batch_size=batch_size, top_k=1)
    progress = tqdm(
        found, total=len(rows), desc="scoring", unit="image", disable=quiet, leave=False
    )
    return [number[answer[0]["label"]] for answer in progress]
