import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from diffusers_ndc.pipelines.inputs import to_pixel_batch


PIXELS = np.random.default_rng(0).integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
EXPECTED = torch.from_numpy(PIXELS / np.float32(255)).permute(2, 0, 1)[None]


@pytest.mark.parametrize(
    "image",
    [
        PIL.Image.fromarray(PIXELS),
        PIXELS,
        PIXELS.astype(np.float64) / 255,
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        EXPECTED[0],
        EXPECTED[0].double(),
    ],
)
def test_every_kind_of_one_image_is_the_same_batch(image):
    batch, single = to_pixel_batch(image, 3, (8, 8))
    assert single and batch.dtype == torch.float32
    torch.testing.assert_close(batch, EXPECTED)
    batch, single = to_pixel_batch([image, PIL.Image.fromarray(PIXELS)], 3, (8, 8))
    assert not single
    torch.testing.assert_close(batch, EXPECTED.repeat(2, 1, 1, 1))


@pytest.mark.parametrize("batch", [PIXELS[None], EXPECTED, [EXPECTED[0]]])
def test_batches_stay_batches(batch):
    result, single = to_pixel_batch(batch, 3, (8, 8))
    assert not single
    torch.testing.assert_close(result, EXPECTED)


def test_a_column_of_a_data_set_is_a_batch():
    features = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": [PIL.Image.fromarray(PIXELS)] * 2}, features=features)
    result, single = to_pixel_batch(rows["image"], 3, (8, 8))
    assert not single
    torch.testing.assert_close(result, EXPECTED.repeat(2, 1, 1, 1))


def test_grey_images():
    grey = PIXELS[:, :, 0]
    expected = torch.from_numpy(grey / np.float32(255))[None, None]
    for image in (PIL.Image.fromarray(grey), PIL.Image.fromarray(grey).convert("RGB"), grey, grey[:, :, None]):
        torch.testing.assert_close(to_pixel_batch(image, 1, (8, 8))[0], expected)


def test_pil_images_are_resized_to_the_network():
    batch, _ = to_pixel_batch(PIL.Image.new("RGB", (20, 30), (255, 0, 0)), 3, (8, 8))
    torch.testing.assert_close(batch, torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 8, 8))
    assert to_pixel_batch(PIL.Image.new("L", (20, 30)), 1, None)[0].shape == (1, 1, 30, 20)


def test_palettes_are_resolved_before_the_resizing():
    shades = np.arange(64, dtype=np.uint8).repeat(9).reshape(24, 24) * 4
    grey = PIL.Image.fromarray(shades)
    places = PIL.Image.fromarray(63 - shades // 4).convert("P")
    places.putpalette([shade for place in range(256) for shade in [max(0, 63 - place) * 4] * 3])
    for channels in (1, 3):
        expected, _ = to_pixel_batch(grey, channels, (8, 8))
        torch.testing.assert_close(to_pixel_batch(places, channels, (8, 8))[0], expected)
    black = PIL.Image.fromarray(shades > 100)
    assert black.mode == "1" and 2 < to_pixel_batch(black, 1, (7, 7))[0].unique().numel()


@pytest.mark.parametrize(
    "images, error",
    [
        ("digit.png", TypeError),
        (None, TypeError),
        ([], ValueError),
        (np.zeros(5), ValueError),
        (torch.zeros(8, 8), ValueError),
        (np.zeros((8, 8, 3), dtype=np.int64), TypeError),
        (torch.zeros(3, 8, 8, dtype=torch.int64), TypeError),
        ([torch.zeros(3, 8, 8), torch.zeros(3, 9, 9)], ValueError),
    ],
)
def test_refuses_what_is_no_image(images, error):
    with pytest.raises(error, match="`images`"):
        to_pixel_batch(images, 3, (8, 8))
