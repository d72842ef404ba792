"""Optical flow: the embedded textures, files, crops, what the model sees, and how it is scored."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from recipe_loading import importing

with importing("vision"):
    import textures
    from flow_batches import BESIDE_UNKNOWN, UNKNOWN, Crops, flipped, patches, stack
    from flow_data import Pairs, load_pairs, read_pairs
    from flow_file import FlowError, read_flow, write_flow
    from flow_picture import coloured, draw_flows
    from flow_scoring import end_point_loss, errors, mean_flow, predict, score, starts
    from images import ImageError


def frames(number: int, size: tuple[int, int] = (12, 16)) -> list[np.ndarray]:
    random = np.random.default_rng(number)
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(2)]


def flow_of(number: int, size: tuple[int, int] = (12, 16)) -> np.ndarray:
    return np.random.default_rng(number).normal(size=(*size, 2)).astype(np.float32)


def chairs(folder: Path, count: int = 3, size: tuple[int, int] = (12, 16)) -> Path:
    """A folder as FlyingChairs has it."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        for name, frame in zip(("img1", "img2"), frames(i, size), strict=True):
            Image.fromarray(frame).save(folder / f"{i:05}_{name}.ppm")
        write_flow(folder / f"{i:05}_flow.flo", flow_of(i, size))
    return folder


# ---- The embedded textures


@pytest.mark.parametrize("number", range(6))
def test_the_second_frame_warped_is_the_first(number):
    """Red if the flow is not exactly where a pixel goes: by another sign, order of x and y, or motion.

    Where the flow leads out of the frame or to a pixel of another layer the frames show nothing.
    """
    first, second, flow, seen = textures.layers("train", number, (40, 48))
    height, width = flow.shape[:2]
    points = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1) + flow
    whole = np.floor(points).astype(int)
    shown = (whole >= 0).all(-1) & (whole[..., 0] < width - 1) & (whole[..., 1] < height - 1)
    x, y = (whole[..., i].clip(0, side - 2) for i, side in enumerate((width, height)))
    for right in (0, 1):
        for down in (0, 1):
            shown &= seen[1][y + down, x + right] == seen[0]
    assert shown.mean() > 0.6
    warped = textures.sample(second, points)
    np.testing.assert_allclose(warped[shown], first[shown], atol=2e-3)  # the flow is float32
    still = abs(second - first)[shown].mean()
    assert still > 3  # grey levels: without the flow they differ
    np.testing.assert_allclose(
        textures.layers("train", number, (40, 48))[0], first
    )  # the same each time


def test_textures_move_apart():
    """Red if no patch moves on its own, or a motion is larger than it says."""
    drawn = [textures.layers("train", i) for i in range(40)]
    assert {int(seen.max()) for *_, seen in drawn} == {*range(textures.PATCHES + 1)}
    for _, _, flow, seen in drawn:
        if seen[0].any() and (seen[0] == 0).any():
            apart = flow[seen[0] == 1].mean(0) - flow[seen[0] == 0].mean(0)
            assert np.linalg.norm(apart) > 0.01
    most = textures.FARTHEST + (textures.TURN + textures.ZOOM) * np.hypot(*textures.SIZE)
    assert max(np.linalg.norm(flow, axis=-1).max() for _, _, flow, _ in drawn) < most


def test_a_motion_literally():
    """Red if a quarter turn goes the other way round, or `back` does not undo it."""
    motion = textures.Motion(np.array([2.0, 3.0]), np.pi / 2, 2.0, np.array([1.0, -1.0]))
    point = np.array([3.0, 3.0])  # one right of the middle: two below it, then moved
    np.testing.assert_allclose(motion(point), [3.0, 4.0])
    np.testing.assert_allclose(motion.back(motion(point)), point)
    image = np.array([[[0.0], [10.0]], [[20.0], [30.0]]])
    np.testing.assert_allclose(textures.sample(image, np.array([0.25, 0.5])), [12.5])


# ---- Files


def test_flow_file_literally(tmp_path):
    """Red if width and height, or x and y, change places, or an unknown pixel counts as known."""
    content = b"PIEH" + np.array([2, 1], "<i4").tobytes()
    content += np.array([1.5, -2, 1e10, 0], "<f4").tobytes()
    (tmp_path / "a.flo").write_bytes(content)
    flow = read_flow(tmp_path / "a.flo")
    np.testing.assert_array_equal(flow, [[[1.5, -2], [np.nan, np.nan]]])
    write_flow(tmp_path / "b.flo", flow)
    again = (tmp_path / "b.flo").read_bytes()
    assert again[:20] == content[:20]
    np.testing.assert_array_equal(read_flow(tmp_path / "b.flo"), flow)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: b"PIEX" + content[4:], "does not begin as a .flo file"),
        (lambda content: content[:7], "does not begin as a .flo file"),
        (lambda content: content[:-1], "1,547 bytes, but a flow of 16 x 12 has 1,548"),
        (lambda content: content + b"x", "1,549 bytes"),
        (lambda content: content[:4] + b"\xff" * 4 + content[8:], "says that it is -1 x 12"),
    ],
)
def test_damaged_flow_file(damage, said, tmp_path):
    """Red if a damaged file is read, or its message has not one line with its name."""
    path = tmp_path / "00001_flow.flo"
    write_flow(path, flow_of(1))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FlowError, match=said) as caught:
        read_flow(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flying_chairs(tmp_path):
    """Red if a pair's files are mixed up."""
    pairs = read_pairs(str(chairs(tmp_path)))
    assert len(pairs) == 3
    for i in range(3):
        first, second, flow = pairs.open(i)
        np.testing.assert_array_equal([first, second], frames(i))
        np.testing.assert_array_equal(flow, flow_of(i))
    data = load_pairs({"train": str(tmp_path), "test": str(tmp_path)}, validation_rows=1)
    names = [name for split in ("train", "validation") for name in data.splits[split].names]
    assert sorted(names) == list(pairs.names)
    for split in ("train", "validation"):
        part = data.splits[split]
        for i, name in enumerate(part.names):
            number = pairs.names.index(name)
            np.testing.assert_array_equal(part.open(i)[2], flow_of(number))


@pytest.mark.parametrize("render", ["clean", "final"])
def test_sintel(render, tmp_path):
    """Red if the other rendering is read, or the second frame is not the next one."""
    for scene in ("alley_1", "market_2"):
        (tmp_path / "flow" / scene).mkdir(parents=True)
        for kind in ("clean", "final"):
            (tmp_path / kind / scene).mkdir(parents=True)
            for i in range(1, 4):
                shade = 10 * i + (100 if kind == "final" else 0) + len(scene)
                image = Image.new("RGB", (16, 12), (shade, 0, 0))
                image.save(tmp_path / kind / scene / f"frame_{i:04}.png")
        for i in (1, 2):
            write_flow(tmp_path / "flow" / scene / f"frame_{i:04}.flo", flow_of(i + len(scene)))
    pairs = read_pairs(str(tmp_path), render)
    assert len(pairs) == 4
    first, second, flow = pairs.open(3)
    extra = 100 if render == "final" else 0
    assert (first[0, 0, 0], second[0, 0, 0]) == (28 + extra, 38 + extra)
    np.testing.assert_array_equal(flow, flow_of(10))
    (tmp_path / render / "alley_1" / "frame_0002.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"frame_0002.png is missing"):
        read_pairs(str(tmp_path), render)


def test_incomplete_folders(tmp_path):
    """Red if a missing file is found only in training, or an empty folder trains on nothing."""
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_pairs(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="no flow in it; give a folder"):
        read_pairs(str(tmp_path))
    folder = chairs(tmp_path / "chairs")
    (folder / "00001_img2.ppm").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"00001_flow.flo: its frame .*_img2.ppm is missing"
    ):
        read_pairs(str(folder))
    chairs(folder)
    (folder / "00002_flow.flo").unlink()
    with pytest.raises(FileNotFoundError, match=r"its flow .*00002_flow.flo is missing"):
        read_pairs(str(folder))
    with pytest.raises(ValueError, match="no --test_data"):
        load_pairs({"train": str(folder), "test": None})


def test_pairs_that_cannot_be_used(tmp_path):
    """Red if a pair of wrong sizes, too small or without any known flow trains."""
    folder = chairs(tmp_path)
    with pytest.raises(ImageError, match="16 x 12 pixels, but the model sees 20 x 12"):
        read_pairs(str(folder)).open(0, (12, 20))
    Image.fromarray(frames(0, (12, 15))[0]).save(folder / "00000_img2.ppm")
    with pytest.raises(ImageError, match="of one size, but are 16 x 12, 15 x 12, 16 x 12"):
        read_pairs(str(folder)).open(0)
    write_flow(folder / "00001_flow.flo", np.full((12, 16, 2), np.nan))
    with pytest.raises(ImageError, match="no flow in it is known"):
        read_pairs(str(folder)).open(1)
    (folder / "00002_img1.ppm").write_bytes(b"P6 nothing")
    with pytest.raises(ImageError, match=r"00002_img1.ppm: cannot be read as an image"):
        read_pairs(str(folder)).open(2)
    (folder / "00002_flow.flo").write_bytes(b"")
    with pytest.raises(ImageError):
        Crops(read_pairs(str(folder)), (12, 16)).hold("opening", quiet=True)


# ---- Crops, mirror images, patches


def test_flips_mirror_the_flow():
    """Red if a component keeps its sign, the wrong one changes, or frames and flow part."""
    first, second = (np.arange(12).reshape(2, 2, 3) + i for i in (0, 50))
    flow = np.array([[[1.0, 2], [3, 4]], [[5, 6], [7, 8]]])
    a, b, across = flipped(first, second, flow, across=True, down=False)
    np.testing.assert_array_equal(across, [[[-3, 4], [-1, 2]], [[-7, 8], [-5, 6]]])
    np.testing.assert_array_equal([a, b], [first[:, ::-1], second[:, ::-1]])
    a, b, down = flipped(first, second, flow, across=False, down=True)
    np.testing.assert_array_equal(down, [[[5, -6], [7, -8]], [[1, -2], [3, -4]]])
    np.testing.assert_array_equal([a, b], [first[::-1], second[::-1]])


def test_crops_are_seeded_and_hold_together():
    """Red if frames and flow are cut at different places, an epoch repeats, or a crop hangs on what was
    drawn before it."""
    place = np.stack(np.meshgrid(np.arange(9), np.arange(8)), axis=-1)
    frame = np.concatenate([place, place[..., :1]], -1).astype(np.uint8)
    pairs = Pairs(["it"] * 4, lambda number: (frame, frame, place.astype(np.float32)))
    crops = Crops(pairs, (4, 5), seed=3)
    corners = set()
    for epoch in range(20):
        crops.set_epoch(epoch)
        row = crops[epoch % 4]
        np.testing.assert_array_equal(row["frames"][0], row["frames"][1])
        np.testing.assert_array_equal(abs(row["labels"]), row["frames"][0][..., :2])
        corners.add(tuple(row["frames"][0][0, 0]))
        again = Crops(pairs, (4, 5), seed=3)
        again.set_epoch(epoch)
        again.hold("it", quiet=True)
        np.testing.assert_array_equal(again[epoch % 4]["labels"], row["labels"])
    assert len(corners) > 10
    middle = Crops(pairs, (4, 5))[0]
    np.testing.assert_array_equal(middle["labels"], place[2:6, 2:7])


def test_patches_literally():
    """Red if neighbours are in another order than DeepMind's: row, column, colour."""
    frame = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).reshape(1, 2, 4, 5, 3)
    found = patches(frame)
    assert found.shape == (1, 2, 27, 4, 5)
    for row in range(3):
        for column in range(3):
            for colour in range(3):
                level = frame[0, 1, 1 + row, 2 + column, colour].item() / 127.5 - 1
                channel = (row * 3 + column) * 3 + colour
                assert found[0, 1, channel, 2, 3].item() == pytest.approx(level)
    assert (found[0, 0, :9, 0] == 0).all()  # the row above the first


# ---- Loss and score


def test_the_loss_is_the_mean_end_point_error():
    """Red if it is a mean over components, unknown pixels count, or the whole update's size is left out.

    Errors 5, 1 and, unknown, none: their mean is 3 pixels.
    """
    labels = torch.tensor([[[[1.0, 1], [0, 0], [UNKNOWN, UNKNOWN]]]])
    logits = torch.tensor([[[[2.0, 2.5], [0, 0.5], [9, 9]]]], requires_grad=True)
    loss = end_point_loss({"logits": logits}, labels, scale=2.0)
    assert loss.item() == pytest.approx(3.0)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[0, 0, 2] == 0).all()
    update = end_point_loss({"logits": logits}, labels, torch.tensor(8), scale=2.0)
    assert update.item() == pytest.approx(6 / 4)
    assert labels.ne(-100).sum() == 4  # what the Trainer counts


def test_unknown_pixels_and_a_flow_of_minus_100():
    """Red if a real flow of -100 pixels is taken as unknown, or an unknown pixel as known."""
    flow = np.array([[[-100.0, 3], [np.nan, np.nan]]], np.float32)
    black = np.zeros((1, 2, 3), np.uint8)
    row = Crops(Pairs(["it"], lambda number: (black, black, flow)), (1, 2))[0]
    expected = [[[BESIDE_UNKNOWN, 3], [UNKNOWN, UNKNOWN]]]
    np.testing.assert_array_equal(row["labels"], np.array(expected, np.float32))
    assert stack([row, row])["labels"].ne(-100).sum() == 4


class Brightness(torch.nn.Module):
    """Says that the flow is the first frame's red and green, between -1 and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        middle = inputs[:, 0, 12:14]  # of the 3x3 patch
        return {"logits": middle.permute(0, 2, 3, 1) * self.weight}


@pytest.mark.parametrize("size", [(12, 16), (23, 37)])
def test_tiles_cover_a_larger_frame(size):
    """Red if a pixel is left out, a tile lies elsewhere, or weights do not sum to one."""
    first, second = frames(1, size)
    flow = predict(Brightness(), first, second, size=(12, 16), scale=3.0, batch_size=2)
    expected = 3 * (first[..., :2].astype(np.float32) / 127.5 - 1)
    np.testing.assert_allclose(flow, expected, atol=1e-5)
    assert starts(16, 16) == [0]
    assert starts(37, 16) == [0, 10, 21]


def test_scores_literally():
    """Red if errors are averaged by pair instead of pixel, or an outlier is not above 3 pixels."""
    black = np.zeros((12, 16, 3), np.uint8)
    first, second = np.zeros((2, 12, 16, 2), np.float32)
    first[..., 0], second[:, :8] = 4, np.nan
    flows = [first, second]
    pairs = Pairs(["a", "b"], lambda number: (black, black, flows[number]))
    mean = mean_flow(pairs, quiet=True)
    np.testing.assert_allclose(mean, [4 * 2 / 3, 0])
    constants = {"zero": np.zeros(2), "mean": mean}
    found = score(Brightness(), pairs, constants, size=(12, 16), scale=0.0, quiet=True)
    assert found["epe"] == found["epe_zero"] == pytest.approx(8 / 3)
    assert found["outliers"] == pytest.approx(2 / 3)
    assert found["epe_mean"] == pytest.approx((4 / 3 * 2 + 8 / 3) / 3)
    assert found["outliers_mean"] == 0
    assert errors(first + 3, first).shape == (192,)


def test_flow_picture(tmp_path):
    """Red if no motion is not white, the wheel is turned, or unknown pixels look like motion."""
    flow = np.array([[[0, 0], [2, 0], [-2, 0], [0, 2], [np.nan, np.nan]]], np.float32)
    white, right, left, down, unknown = coloured(flow, 2.0)[0].tolist()
    assert (white, unknown) == ([255] * 3, [0] * 3)
    assert right == [255, 0, 0]  # as in Baker et al.: rightwards red, downwards yellow
    assert left[2] > 200 and left[0] == 0  # noqa: PT018  # leftwards blue
    assert down[:2] == pytest.approx([255, 230], abs=30)
    draw_flows(tmp_path / "flow.png", [(frames(0)[0], flow_of(0), flow_of(1))] * 2)
    with Image.open(tmp_path / "flow.png") as image:
        assert image.size[0] > 3 * 160
    assert "torchvision" not in sys.modules
