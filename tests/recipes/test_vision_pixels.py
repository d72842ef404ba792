"""How the vision recipes' images become pixels: every kind of file, scaling, crops, mirror images."""

import numpy as np
import pytest
import torch
from PIL import Image
from recipe_loading import importing
from transformers import ConvNextImageProcessor, EfficientNetImageProcessor, ViTImageProcessor
from vision import coloured, encoded

with importing("vision"):
    from augmentation import Augmentation
    from batches import Pixels, Stack
    from images import ImageError, Scaled, open_image
    from labelled import LabelledRows
    from shapes import LABELS, drawn

# Two pixels side by side: how they are stored -> what they are in RGB.
MODES = {
    "RGB": (np.array([[[1, 2, 3], [9, 8, 7]]], np.uint8), [(1, 2, 3), (9, 8, 7)]),
    "L": (np.array([[7, 200]], np.uint8), [(7, 7, 7), (200, 200, 200)]),
    "LA": (np.array([[[7, 0], [200, 255]]], np.uint8), [(7, 7, 7), (200, 200, 200)]),
    "RGBA": (np.array([[[1, 2, 3, 0], [9, 8, 7, 9]]], np.uint8), [(1, 2, 3), (9, 8, 7)]),
    "I;16": (np.array([[25_700, 65_535]], np.uint16), [(100, 100, 100), (255, 255, 255)]),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode):
    """Red if grey, transparency or 16 bits become other colours than these, such as white."""
    stored, expected = MODES[mode]
    image = Image.fromarray(stored)
    assert image.mode == mode
    found = open_image(encoded(image), "it")
    assert (found.mode, found.size) == ("RGB", (8, 4))  # enlarged
    assert [found.getpixel((x, 0)) for x in (0, 4)] == expected


def test_palettes_and_one_bit():
    """Red if a transparent palette warns or shows other colours, or one bit is not black and white."""
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    found = open_image(encoded(palette, transparency=b"\x00\xff"), "it")
    assert [found.getpixel((x, 0)) for x in (0, 4)] == [(10, 20, 30), (200, 100, 50)]
    bits = Image.new("1", (2, 1))
    bits.putpixel((1, 0), 1)
    found = open_image(encoded(bits), "it")
    assert [found.getpixel((x, 0)) for x in (0, 4)] == [(0, 0, 0), (255, 255, 255)]
    assert open_image(encoded(Image.new("CMYK", (3, 2)), "tiff"), "it").mode == "RGB"


def test_turned_as_exif_says():
    """Red if a photograph of a camera that was held upright lies on its side."""
    image = Image.new("RGB", (8, 4))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter, clockwise
    found = open_image(encoded(image, exif=exif), "it")
    assert found.size == (4, 8)
    assert found.getpixel((3, 0)) == (255, 255, 255)


def broken():
    whole = encoded(coloured("red", 0, 64), "jpeg")["bytes"]
    floats = encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "tiff")
    deep = encoded(Image.fromarray(np.full((2, 2), 70_000, np.int32)), "tiff")
    return {
        "cut": ({"bytes": whole[: len(whole) // 2]}, "truncated"),
        "text": ({"bytes": b"no image at all"}, "no format that Pillow knows"),
        "empty": ({"bytes": b""}, "no format that Pillow knows"),
        "damaged": ({"bytes": encoded(coloured("red", 0))["bytes"][:40] + b"xx" * 90}, "read as"),
        "missing": ({"bytes": None, "path": "/nowhere/a.png"}, "No such file"),
        "floats": (floats, "pixels are floats"),
        "deep": (deep, "from 70000 to 70000, which are not 16 bits"),
    }


@pytest.mark.parametrize("kind", broken())
def test_what_is_no_image(kind):
    """Red if it ends in an error of Pillow's, which names no image, or in several lines."""
    source, said = broken()[kind]
    with pytest.raises(ImageError) as error:
        open_image(source, "cats.parquet, row 7")
    text = str(error.value)
    assert text.startswith("cats.parquet, row 7: ")
    assert said in text
    assert "\n" not in text


PROCESSORS = {
    "vit": lambda: ViTImageProcessor(size={"height": 24, "width": 20}),
    "convnext": lambda: ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875),
    "efficientnet": lambda: EfficientNetImageProcessor(
        size={"height": 24, "width": 24}, do_center_crop=False
    ),
}


@pytest.mark.filterwarnings("ignore:.*requires torchvision")
@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("size", [(70, 50), (16, 200), (1, 1), (20, 24), (32, 32)])
def test_pixels_are_the_processors(kind, size):
    """Red if training scales or normalises an image otherwise than the checkpoint's pipeline will."""
    processor = PROCESSORS[kind]()
    scaled = Scaled(processor)
    noise = np.random.default_rng(0).integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)
    image = open_image(encoded(Image.fromarray(noise)), "it")
    pixels = scaled(image)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (*scaled.size, 3))
    found = scaled.normalise(torch.from_numpy(pixels)[None])[0]
    expected = processor(images=image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*requires torchvision")
def test_a_processor_without_one_size():
    """Red if images of different sizes are found out by a batch that cannot be stacked."""
    processor = ConvNextImageProcessor(size={"shortest_edge": 32}, do_resize=False)
    with pytest.raises(ValueError, match=r"images of different sizes .* crop_size"):
        Scaled(processor)


def test_crops_and_mirror_images():
    """Red if a crop shows anything but the image moved by at most the padding, black around it, or
    mirrored; or some of these never come."""
    pixels = np.arange(1, 5, dtype=np.uint8).reshape(2, 2, 1).repeat(3, axis=2)
    vary = Augmentation(seed=0, padding=1, flip=True)
    around = np.pad(pixels[..., 0], 1)
    expected = {
        tuple(part[:, ::turn].flatten().tolist())
        for y in range(3)
        for x in range(3)
        for part in [around[y : y + 2, x : x + 2]]
        for turn in (1, -1)
    }
    found = [vary.shift_and_flip(pixels, vary.random(0, i))[..., 0] for i in range(400)]
    assert {tuple(part.flatten().tolist()) for part in found} == expected
    still = Augmentation(seed=0)
    assert still.shift_and_flip(pixels, still.random(0, 0)) is pixels


def test_crops_of_any_size():
    """Red if a crop has another size than the model's, or always shows the whole image."""
    image = Image.fromarray(np.arange(40 * 60, dtype=np.uint16).reshape(40, 60).astype(np.uint8))
    image = image.convert("RGB")
    vary = Augmentation(seed=0, min_area=0.1)
    found = [vary.cut(image, (12, 8), vary.random(0, i)) for i in range(20)]
    assert {part.shape for part in found} == {(12, 8, 3)}
    assert len({part.tobytes() for part in found}) == 20
    thin = Image.new("RGB", (1, 300), (9, 9, 9))
    assert vary.cut(thin, (12, 8), vary.random(0, 0)).shape == (12, 8, 3)


@pytest.mark.filterwarnings("ignore:.*requires torchvision")
def test_augmentation_hangs_on_seed_epoch_and_number_alone():
    """Red if it draws from a global generator, is the same in each epoch, or held images differ from
    those that are opened when they are asked for."""
    rows = LabelledRows([encoded(coloured("red", i)) for i in range(6)], ["red"] * 6, ["it"] * 6)
    scaled = Scaled(ViTImageProcessor(size={"height": 16, "width": 16}))
    first, second = (Pixels(rows, [0] * 6, scaled, Augmentation(seed, 4, True)) for seed in (3, 3))
    first.hold("it", quiet=True)
    for epoch in (0, 1):
        first.set_epoch(epoch)
        second.set_epoch(epoch)
        forwards = [first[i]["pixel_values"].tobytes() for i in range(6)]
        torch.manual_seed(epoch)
        np.random.seed(epoch)
        backwards = [second[i]["pixel_values"].tobytes() for i in reversed(range(6))]
        assert forwards == backwards[::-1]
        second.set_epoch(7)
        assert forwards != [second[i]["pixel_values"].tobytes() for i in range(6)]
    batch = Stack(scaled)([first[0], first[1]])
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["pixel_values"].is_contiguous(memory_format=torch.channels_last)


def test_embedded_shapes():
    """Red if they are drawn anew in each run, splits share images, or the mean colour tells classes."""
    (images, classes), (again, _) = drawn("train", 400), drawn("train", 400)
    assert np.array_equal(images, again)
    assert np.bincount(classes).tolist() == [50] * len(LABELS)
    others, _ = drawn("test", 400)
    assert not {image.tobytes() for image in images} & {image.tobytes() for image in others}
    means = images.mean((1, 2))
    of_class = np.array([means[classes == kind].mean(0) for kind in range(len(LABELS))])
    # within classes colours vary by 30 grey levels, so the mean of 50 images by about 4
    assert np.ptp(of_class, axis=0).max() < 30
