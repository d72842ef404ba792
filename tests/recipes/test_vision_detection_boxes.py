"""Boxes on their way through the detection recipe, by arithmetic: scaled, mirrored, padded, scored."""

from collections import Counter

import numpy as np
import pytest
import torch
from boxes import boxed, coco
from PIL import Image
from recipe_loading import importing
from torch import nn
from transformers import (
    DetrImageProcessor,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

with importing("vision"):
    from annotated import read_annotated
    from augmentation import Augmentation
    from boxed_rows import AnnotatedRows
    from detection_batches import BoxedPixels, StackBoxed, mirrored, relative
    from detection_model import WholeImages
    from detection_scoring import detections, draw_samples, mean_average_precision

SQUARE = {"size": {"height": 64, "width": 32}, "do_pad": False}


class Masked(nn.Module):
    def forward(self, pixel_values, pixel_mask):
        """Takes a mask: its signature is what is read."""


def rows_of(boxes, labels, crowds=None, size=(100, 50)):
    """Rows of true boxes, without images."""
    count = len(boxes)
    return AnnotatedRows(
        images=[],
        at=np.arange(count),
        names=[f"image {i}" for i in range(count)],
        sizes=[size] * count,
        boxes=[np.array(each, dtype=float).reshape(-1, 4) for each in boxes],
        labels=labels,
        crowds=[
            np.array(each, dtype=bool) for each in crowds or [[False] * len(row) for row in boxes]
        ],
    )


def found_of(*images):
    """What a detector found: for each image (box, class, score)."""
    return [
        {
            "boxes": np.array([box for box, _, _ in each], dtype=float).reshape(-1, 4),
            "labels": np.array([label for _, label, _ in each], dtype=int),
            "scores": np.array([score for _, _, score in each], dtype=float),
        }
        for each in images
    ]


def test_relative_and_mirrored():
    """Red if a middle is taken for a corner, width for height, or a mirror image keeps its boxes."""
    boxes = relative(np.array([[10.0, 5, 20, 10]]), (100, 50))
    assert boxes.tolist() == [pytest.approx([0.2, 0.2, 0.2, 0.2])]
    boxes = relative(np.array([[0.0, 0, 25, 50]]), (100, 50))
    assert boxes.tolist() == [[0.125, 0.5, 0.25, 1.0]]
    assert mirrored(boxes, 0).tolist() == [[0.875, 0.5, 0.25, 1.0]]
    assert mirrored(relative(np.array([[0.0, 0, 25, 10]]), (100, 50)), 1).tolist() == [
        pytest.approx([0.125, 0.9, 0.25, 0.2])
    ]
    assert relative(np.zeros((0, 4)), (100, 50)).shape == (0, 4)


def white_part(pixels):
    """The box of the bright pixels, relative: middle x, middle y, width, height."""
    bright = pixels.mean(2) > 127
    down, across = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    height, width = bright.shape
    left, right, top, bottom = across[0], across[-1] + 1, down[0], down[-1] + 1
    return [
        (left + right) / 2 / width,
        (top + bottom) / 2 / height,
        (right - left) / width,
        (bottom - top) / height,
    ]


@pytest.mark.parametrize(
    "size", [{"height": 96, "width": 48}, {"shortest_edge": 64, "longest_edge": 256}]
)
def test_boxes_lie_on_what_they_are_around(size, tmp_path):
    """Red if a box leaves its object when the image is scaled, or mirrored in either direction.

    The image is larger than what the model sees, and of another shape.
    """
    image = Image.new("RGB", (400, 200))
    image.paste((255, 255, 255), (40, 100, 200, 150))
    image.save(tmp_path / "0.png")
    source = {"bytes": None, "path": str(tmp_path / "0.png")}
    rows = AnnotatedRows(
        [source],
        np.arange(1),
        ["it"],
        [(400, 200)],
        [np.array([[40.0, 100, 160, 50]])],
        [["a"]],
        [np.array([False])],
    )
    scaled = WholeImages(DetrImageProcessor(size=size, do_pad=False))
    images = BoxedPixels(rows, ["a"], scaled, Augmentation(0, flip=True), True)
    middles = Counter()
    for epoch in range(20):
        images.set_epoch(epoch)
        row = images[0]
        (box,) = row["boxes"]
        assert box.tolist() == pytest.approx(white_part(row["pixel_values"]), abs=0.02)
        middles[tuple(np.round(box[:2].astype(float), 2).tolist())] += 1
    assert middles.keys() == {(0.3, 0.62), (0.7, 0.62), (0.3, 0.38), (0.7, 0.38)}
    assert scaled.one_size == ("height" in size)


def test_batches(tmp_path):
    """Red if an image without boxes breaks a batch, a smaller one is stretched or not masked, or a
    crowd is learned."""
    rows = read_annotated(str(coco(tmp_path)))
    rows.crowds[2][0] = True
    scaled = WholeImages(DetrImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}))
    images = BoxedPixels(rows, ["bright", "dark"], scaled)
    three = [images[i] for i in range(3)]
    assert [len(row["boxes"]) for row in three] == [0, 1, 1]
    assert three[1]["class_labels"].tolist() == [1 - boxed(1)[2][0]]
    three[1]["pixel_values"] = three[1]["pixel_values"][:20, :30]
    batch = StackBoxed(scaled, Masked())(three)
    assert batch["pixel_values"].shape == (3, 3, 32, 40)
    assert batch["pixel_mask"].sum((1, 2)).tolist() == [32 * 40, 20 * 30, 32 * 40]
    assert batch["pixel_values"][1, :, 20:].abs().max() == 0
    assert batch["pixel_values"][1, :, :, 30:].abs().max() == 0
    ours = scaled.normalise(torch.from_numpy(np.ascontiguousarray(three[1]["pixel_values"]))[None])
    assert torch.equal(batch["pixel_values"][1, :, :20, :30], ours[0])
    assert [len(each["boxes"]) for each in batch["labels"]] == [0, 1, 1]
    model = tiny_yolos()
    batch = StackBoxed(scaled, model)(three[::2])
    assert "pixel_mask" not in batch
    assert model(**batch).loss.isfinite()
    assert model(**StackBoxed(scaled, model)(three[:1])).loss.isfinite()  # no box at all


def tiny_yolos(size=(32, 40)):
    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        patch_size=8,
        image_size=list(size),
        num_detection_tokens=5,
        use_mid_position_embeddings=False,
        num_labels=2,
    )
    return YolosForObjectDetection(config)


def test_pixels_are_the_processors(tmp_path):
    """Red if the model is shown other pixels than the saved processor makes of the image."""
    rows = read_annotated(str(coco(tmp_path)))
    processor = YolosImageProcessor(**SQUARE)
    scaled = WholeImages(processor)
    batch = StackBoxed(scaled, nn.Identity())([BoxedPixels(rows, ["dark", "bright"], scaled)[4]])
    expected = processor(images=rows.open(4), return_tensors="pt")["pixel_values"]
    assert batch["pixel_values"].shape == (1, 3, 64, 32)
    torch.testing.assert_close(batch["pixel_values"], expected, atol=0.02, rtol=0)


def test_a_processor_that_pads_is_refused():
    """Red if boxes are taken as relative to an image that has got a margin."""
    pads = DetrImageProcessor(
        size={"shortest_edge": 32, "longest_edge": 64}, pad_size={"height": 96, "width": 96}
    )
    with pytest.raises(ValueError, match="pads an image, so its boxes would be elsewhere"):
        WholeImages(pads)


def test_average_precision_by_hand():
    """Red if a score is not COCO's: the worked example has one class, two true boxes, three found.

    By score: a hit (IoU 1), a miss, a hit of IoU 0.7. Precision at recall 0.5 is 1, at recall 1 it is
    2/3; of COCO's 101 recalls 51 are at most 0.5. At IoU 0.75 and above the third is a miss too.
    """
    rows = rows_of([[[10, 10, 20, 20]], [[50, 10, 10, 20]]], [["a"], ["a"]])
    found = found_of(
        [([10, 10, 20, 20], 0, 0.9), ([60, 30, 10, 10], 0, 0.8)],
        [([50, 10, 10, 14], 0, 0.7)],
    )
    scores = mean_average_precision(rows, ["a"], found)
    loose, strict = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert scores["mAP@50"] == pytest.approx(loose)
    assert scores["mAP@75"] == pytest.approx(strict)
    # 0.5, 0.55, 0.6, 0.65 of the ten, and 0.7, which an overlap of 14/20 reaches
    assert scores["mAP"] == pytest.approx((5 * loose + 5 * strict) / 10)
    assert scores["AP a"] == pytest.approx(scores["mAP"])


def test_average_precision_of_classes_crowds_and_nothing():
    """Red if a class without a true box counts as 0, a crowd as missed, or nothing found is an error."""
    boxes = [[[0, 0, 10, 10]], [[0, 0, 10, 10], [40, 0, 50, 50]]]
    rows = rows_of(boxes, [["a"], ["b", "a"]], [[False], [False, True]])
    found = found_of(
        [([0, 0, 10, 10], 0, 0.5)],
        [([0, 0, 10, 10], 0, 0.9), ([45, 5, 10, 10], 0, 0.95)],  # a wrong class; within the crowd
    )
    scores = mean_average_precision(rows, ["a", "b", "c"], found)
    assert scores["AP a"] == pytest.approx(0.5)
    assert scores["AP b"] == 0
    assert "AP c" not in scores
    assert scores["mAP"] == pytest.approx(0.25)
    assert mean_average_precision(rows, ["a", "b"], found_of([], []))["mAP"] == 0


def test_found_boxes_are_in_the_images_own_pixels(tmp_path):
    """Red if what a model finds is not scaled back to width and height, or moved by its batch."""
    rows = read_annotated(str(coco(tmp_path, 5)))
    processor = YolosImageProcessor(**SQUARE)
    model = tiny_yolos((64, 32)).eval()
    images = BoxedPixels(rows, ["dark", "bright"], WholeImages(processor))
    found = detections(model, processor, images, 2, quiet=True)
    assert len(found) == 5
    with torch.inference_mode():
        one = model(**processor(images=rows.open(3), return_tensors="pt")).pred_boxes[0].numpy()
    middles = found[3]["boxes"][:, :2] + found[3]["boxes"][:, 2:] / 2
    assert middles == pytest.approx(one[:, :2] * [40, 32], abs=0.1)
    assert found[3]["boxes"][:, 2:] == pytest.approx(one[:, 2:] * [40, 32], abs=0.1)


def test_drawn(tmp_path):
    """Red if true boxes are not drawn in green where they are, or found ones below the score are."""
    rows = read_annotated(str(coco(tmp_path, 2)))
    rows = rows.part([1])
    found = found_of([([30, 20, 6, 8], 1, 0.8), ([2, 2, 4, 4], 1, 0.2)])
    draw_samples(tmp_path / "samples.png", rows, ["dark", "bright"], found, 8, 0.5)
    pixels = np.asarray(Image.open(tmp_path / "samples.png")).astype(int)
    assert pixels.shape == (320, 320, 3)
    left, top, _, high = rows.boxes[0][0] * 8
    assert pixels[round(top + high / 2), round(left)].tolist() == [30, 160, 60]
    red = (pixels == (220, 40, 40)).all(2)
    assert red[24 * 8, 30 * 8]
    assert not red[4 * 8, 2 * 8]
