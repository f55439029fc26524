import pytest
import torch
from accelerate import cpu_offload
from diffusers import DDPMScheduler, UNet2DConditionModel
from helpers.networks import tiny_dit, tiny_text_unet, tiny_unet

from diffusers_ndc import Denoiser, EDMUNet2DModel
from diffusers_ndc.diffusion.features import (
    FeatureReader,
    cell_statistics,
    channel_statistics,
    check_cells,
    default_blocks,
    read_features,
)


def tiny_edm_unet():
    torch.manual_seed(0)
    return EDMUNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        model_channels=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        time_proj_dim=8,
        time_embedding_dim=16,
        num_class_embeds=3,
    ).eval()


NETWORKS = {
    "UNet2DModel": (tiny_unet, {"class_labels": torch.tensor([0, 1, 2])}),
    "UNet2DConditionModel": (tiny_text_unet, {"encoder_hidden_states": torch.ones(3, 2, 16)}),
    "EDMUNet2DModel": (tiny_edm_unet, {"class_labels": torch.tensor([0, 1, 2])}),
    "DiT": (tiny_dit, {"class_labels": torch.tensor([0, 1, 2])}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_the_statistics_of_the_blocks(name):
    """Against the outputs of the blocks as they are, for every kind of network that denoises."""
    make, arguments = NETWORKS[name]
    network = make()
    images = torch.randn(3, network.config.in_channels, 8, 8)
    blocks, outputs = default_blocks(network), []
    for block in blocks:
        network.get_submodule(block).register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad(), FeatureReader(network, blocks, 3) as reader:
        network(images, torch.full((3,), 10), **arguments)
    statistics = []
    for output in outputs:
        output = output[0] if isinstance(output, tuple) else output
        output = output.flatten(2) if output.ndim == 4 else output.movedim(1, 2)
        statistics += [output.mean(2), output.var(2, correction=0).sqrt()]
    assert len(outputs) == len(blocks) > 0
    torch.testing.assert_close(reader.features, torch.cat(statistics, dim=1), atol=1e-3, rtol=1e-4)


def read(network, images, num_images=None):
    blocks = default_blocks(network)
    count = len(images) if num_images is None else num_images
    with torch.no_grad(), FeatureReader(network, blocks, count) as reader:
        network(images, torch.full((len(images),), 10), class_labels=torch.zeros(len(images), dtype=torch.long))
    return reader.features


def test_features_of_compiled_networks():
    """A network that was compiled and run before gives the features that it gave uncompiled."""
    images = torch.randn(3, 1, 8, 8)
    expected = read(tiny_unet(), images)
    wrapped, in_place = torch.compile(tiny_unet(), backend="eager"), tiny_unet()
    in_place.compile(backend="eager")
    parts = tiny_unet()
    parts.mid_block.compile(backend="eager")
    for network in (wrapped, in_place, parts):
        with torch.no_grad():
            network(images, 10, class_labels=torch.zeros(3, dtype=torch.long))
        torch.testing.assert_close(read(network, images), expected)


def test_features_of_offloaded_networks_and_half_precision():
    images = torch.randn(3, 1, 8, 8)
    expected = read(tiny_unet(), images)
    torch.testing.assert_close(read(cpu_offload(tiny_unet(), "cpu"), images), expected)
    half = read(tiny_unet().to(torch.bfloat16), images.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, atol=0.1, rtol=0.1)


def test_only_the_first_images_are_read_and_hooks_are_removed():
    network, images = tiny_unet(), torch.randn(4, 1, 8, 8)
    with torch.no_grad(), FeatureReader(network, ["mid_block"], 2) as reader:
        for part in images.split(2):
            network(part, torch.full((2,), 10), class_labels=torch.tensor([0, 1]))
    assert reader.features.shape == (2, 16)
    assert not network.mid_block._forward_hooks


def test_blocks_that_do_not_run_raise():
    network = tiny_unet()
    with FeatureReader(network, ["mid_block"], 2) as reader:
        pass
    with pytest.raises(RuntimeError, match="`network` must run its blocks for 2 images"):
        _ = reader.features


def test_gradients_flow_through_features_of_constant_channels_too():
    output = torch.zeros(1, 2, 4, 4, requires_grad=True)
    channel_statistics(output).sum().backward()
    assert output.grad is not None and output.grad.isfinite().all()


@pytest.mark.parametrize("source", ["null_class", "unconditional_unet", "class_mean"])
def test_features_of_every_unconditional_denoiser(source):
    """One pass, whatever denoises; the denoised image is what the denoiser gives without features."""
    extra = {"null_class": 3} if source == "null_class" else {}
    if source == "unconditional_unet":
        extra["unconditional_unet"] = tiny_unet(None)
    denoiser = Denoiser(tiny_unet(4), DDPMScheduler(), **extra)
    assert denoiser.null_source == source
    x_tau, blocks = torch.randn(5, 1, 8, 8), default_blocks(denoiser.unconditional_network)
    calls = []
    denoiser.unconditional_network.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    with torch.no_grad():
        x0_hat, features = read_features(denoiser, x_tau, 0.25, blocks, 0.5, [0] * 5, batch_size=2)
        assert sum(calls) == 5 * denoiser.null_evaluations
        torch.testing.assert_close(x0_hat, denoiser.denoise(x_tau, 0.5))
        calls.clear()
        _, again = read_features(denoiser, x_tau, 0.25, blocks, 0.5, [0] * 5, denoise=False)
        assert sum(calls) == 5
    torch.testing.assert_close(again, features)


def test_clean_images_are_brought_to_a_noise_that_the_network_knows():
    denoiser, blocks = Denoiser(tiny_unet(), DDPMScheduler()), ("mid_block",)
    clean = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        one, same, other = (
            read_features(denoiser, clean, 0.0, blocks, 0.2, seeds, denoise=False)[1]
            for seeds in ([1, 2], [1, 2], [3, 4])
        )
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_blocks_of_a_condition_network_without_cross_attention():
    network = tiny_unet(4, UNet2DConditionModel, cross_attention_dim=16, attention_head_dim=4,
                        mid_block_type="UNetMidBlock2D")  # fmt: skip
    assert default_blocks(network) == ("down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1")


def test_cells_are_parts_of_the_image():
    """Each cell has the statistics of its part; one cell is the whole; what does not fit is refused."""
    output = torch.randn(2, 3, 5, 8)
    parts = [
        output[:, :, rows, columns] for rows in (slice(0, 3), slice(3, 5)) for columns in (slice(0, 4), slice(4, 8))
    ]
    expected = torch.cat([channel_statistics(part) for part in parts], dim=1)
    torch.testing.assert_close(cell_statistics(output, (2, 2)), expected)
    torch.testing.assert_close(cell_statistics(output, (1, 1)), channel_statistics(output))
    for unfit, cells in ((output, (6, 1)), (output.flatten(2).mT, (1, 2))):
        with pytest.raises(ValueError, match="`cells` must fit"):
            cell_statistics(unfit, cells)
    for wrong in ((1, 2, 3), 2, "12", (0, 1), (1, 1001), (1.5, 2), (True, 1)):
        with pytest.raises(ValueError, match="`cells` must be"):
            check_cells(wrong)
