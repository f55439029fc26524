"""Features of a pass through a network: mean and standard deviation of each channel of a few blocks.

The pass that denoises a copy without a class computes them anyway, and they tell a lot about the class. Statistics of
whole images forget where things are; those of a grid of cells keep it, where it makes the class.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from diffusers import DiTTransformer2DModel, ModelMixin
from torch import nn

from ..common.checks import check_integer
from ..common.noise import standard_normal
from .denoiser import Denoiser
from .networks import uncompiled
from .units import model_sigma


WHOLE = (1, 1)
"""One cell, which is the whole image."""

SMALLEST_VARIANCE = 1e-8
"""Added to variances, so that a constant channel has a gradient."""


def default_blocks(network: ModelMixin) -> tuple[str, ...]:
    """Names of the blocks whose features tell most of the class: those around the lowest resolution.

    Args:
        network: A network as `Denoiser` supports it: the last block of the encoder, the one in the middle, and the
            first two of the decoder; of a DiT two blocks in its second half.

    Returns:
        Names of submodules, as `torch.nn.Module.get_submodule` takes them.

    Example:
        >>> from diffusers import UNet2DModel
        >>> default_blocks(UNet2DModel(block_out_channels=(32, 64), down_block_types=("DownBlock2D",) * 2,
        ...                            up_block_types=("UpBlock2D",) * 2))
        ('down_blocks.1', 'mid_block', 'up_blocks.0', 'up_blocks.1')
    """
    network = uncompiled(network)
    if isinstance(network, DiTTransformer2DModel):
        count = len(network.transformer_blocks)
        return tuple(f"transformer_blocks.{number}" for number in sorted({count // 2, 3 * count // 4}))
    decoder = [f"up_blocks.{number}" for number in range(min(2, len(network.up_blocks)))]
    middle = ["mid_block"] if getattr(network, "mid_block", None) is not None else []
    return (f"down_blocks.{len(network.down_blocks) - 1}", *middle, *decoder)


def check_blocks(network: ModelMixin, blocks: Sequence[str]) -> None:
    """Raise a `ValueError` unless a network has these submodules."""
    names = {name for name, _ in uncompiled(network).named_modules() if name}
    unknown = [block for block in blocks if block not in names]
    if not blocks or unknown:
        raise ValueError(f"`blocks` must be names of blocks of the network, got {list(blocks)}, unknown: {unknown}.")


def check_cells(cells: Sequence[int]) -> None:
    """Raise a `ValueError` unless these are the rows and columns of a grid of cells."""
    if not isinstance(cells, (list, tuple)) or len(cells) != 2:
        raise ValueError(f"`cells` must be the rows and columns of a grid, two integers, got {cells!r}.")
    for number in cells:
        check_integer("cells", number, 1, 1000, "the rows and columns of a grid, two integers")


class FeatureReader:
    """Reads features of the first images that pass through a network, while it is open as a context.

    Hooks on the blocks reduce each output at once, and no activation is kept. A compiled network runs as it was before
    it was compiled within the context, since a compiled one does not notice new hooks. Offloading, `device_map` and
    half precision work as ever: features are computed in float32 or better.

    Args:
        network: The network, compiled or not.
        blocks: Names of its blocks, whose outputs are `(N, C, H, W)` or `(N, tokens, C)`, perhaps with more beside.
        num_images: Number of images to read. What passes after them is ignored, such as the passes of other classes.
        cells: Rows and columns of the grid whose cells are summed up one by one; needs outputs `(N, C, H, W)`.

    Example:
        >>> from diffusers import UNet2DModel
        >>> unet = UNet2DModel(sample_size=8, block_out_channels=(32, 64), down_block_types=("DownBlock2D",) * 2,
        ...                    up_block_types=("UpBlock2D",) * 2).eval()
        >>> with FeatureReader(unet, ["mid_block"], num_images=3) as reader, torch.no_grad():
        ...     _ = unet(torch.randn(3, 3, 8, 8), 10)
        >>> reader.features.shape
        torch.Size([3, 128])
    """

    def __init__(self, network: ModelMixin, blocks: Sequence[str], num_images: int, cells: tuple[int, int] = WHOLE):
        self.modules = [uncompiled(network).get_submodule(block) for block in blocks]
        self.num_images, self.cells = num_images, cells
        self.parts: list[list[torch.Tensor]] = [[] for _ in blocks]
        self.stack = ExitStack()

    def __enter__(self) -> "FeatureReader":
        self.stack.enter_context(torch.compiler.set_stance("force_eager"))
        for module, parts in zip(self.modules, self.parts, strict=True):
            self.stack.callback(module.register_forward_hook(self._hook(parts)).remove)
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    @property
    def features(self) -> torch.Tensor:
        """Features of the images, shape `(num_images, D)`: for each block and cell the means of channels, deviations.

        Float32 (float64 for a network in float64); differentiable where gradients are on.

        Raises:
            RuntimeError: Fewer images have passed through a block than were to be read.
        """
        counts = [sum(map(len, parts)) for parts in self.parts]
        if counts != [self.num_images] * len(counts):
            raise RuntimeError(
                f"`network` must run its blocks for {self.num_images} images while their features are read, got "
                f"{counts} images in the blocks."
            )
        return torch.cat([torch.cat(parts).to(self.parts[0][0].device) for parts in self.parts], dim=1)

    def _hook(self, parts: list[torch.Tensor]) -> Callable:
        def read(module: nn.Module, inputs: tuple, output: torch.Tensor | tuple) -> None:
            if sum(map(len, parts)) < self.num_images:
                parts.append(cell_statistics(output[0] if isinstance(output, tuple) else output, self.cells))

        return read


def read_features(
    denoiser: Denoiser,
    x_tau: torch.Tensor,
    sigma: float,
    blocks: Sequence[str],
    noise: float,
    seeds: Sequence[int],
    batch_size: int | None = None,
    denoise: bool = True,
    cells: tuple[int, int] = WHOLE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Denoise images without a class, and read the features of that pass.

    Where the unconditional denoiser is the mean over the classes, the features are those of the first class's pass,
    whichever that is: it tells of the image, not of the class that it is asked for.

    Args:
        denoiser: The denoiser.
        x_tau: Images or latents that carry noise `sigma`, model units, shape `(N, C, H, W)`.
        sigma: Pixel units; 0 for clean ones.
        blocks: Names of the network's blocks.
        noise: Noise to which clean ones are brought first, model units: the network was not trained on clean ones.
        seeds: One seed of 63 bits per image for that noise.
        batch_size: Images per network evaluation. Default: all.
        denoise: Whether the denoised images are needed. Otherwise the pass of one class may do.
        cells: Rows and columns of the grid whose cells are summed up one by one.

    Returns:
        The denoised images (meaningless if they are not needed), and the features, shape `(N, D)`.
    """
    level = model_sigma(sigma)
    if level == 0:
        eps = standard_normal(tuple(x_tau.shape[1:]), seeds, x_tau.dtype, x_tau.device)
        level, x_tau = noise, x_tau + noise * eps
    label = None
    if not denoise and denoiser.null_source == "class_mean":
        label = torch.zeros(len(x_tau), dtype=torch.long, device=x_tau.device)
    with FeatureReader(denoiser.unconditional_network, blocks, len(x_tau), cells) as reader:
        h = denoiser.denoise(x_tau, level, label, batch_size)
    return h, reader.features


def cell_statistics(output: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
    """Mean and standard deviation of each channel in each cell of a grid, as even as the size allows.

    Args:
        output: Shape `(N, C, H, W)`; for a single cell also `(N, tokens, C)`.
        cells: Rows and columns of the grid.

    Returns:
        Shape `(N, 2 C rows columns)`: cell by cell as `channel_statistics`; float32 or float64.

    Raises:
        ValueError: The output has no place for so many cells.
    """
    if tuple(cells) == WHOLE:
        return channel_statistics(output)
    rows, columns = cells
    if output.ndim != 4 or output.shape[2] < rows or output.shape[3] < columns:
        size = tuple(output.shape[2:]) if output.ndim == 4 else "tokens in a row"
        raise ValueError(f"`cells` must fit into the output of each block, got {tuple(cells)} for {size}.")
    parts = [part for band in output.tensor_split(rows, 2) for part in band.tensor_split(columns, 3)]
    return torch.cat([channel_statistics(part) for part in parts], dim=1)


def channel_statistics(output: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation of each channel.

    Args:
        output: Shape `(N, C, H, W)`, or `(N, tokens, C)`.

    Returns:
        Shape `(N, 2 C)`: the means, then the deviations; float32 or float64.
    """
    values = output.to(torch.promote_types(output.dtype, torch.float32))
    values = values.flatten(2) if values.ndim == 4 else values.transpose(1, 2)
    variance, mean = torch.var_mean(values, dim=2, correction=0)
    return torch.cat([mean, (variance + SMALLEST_VARIANCE).sqrt()], dim=1)
