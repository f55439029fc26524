"""The DDPM++ and NCSN++ networks of Karras et al. 2022 (arXiv:2206.00364), made of diffusers' blocks.

No configuration of `UNet2DModel` can express them: every sum of two branches is scaled by `sqrt(1/2)`, blocks that
resample have a 1x1 convolution in their shortcut, labels enter before the time MLP, and NCSN++ feeds its input again
at every resolution of the encoder.
"""

import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import FirDownsample2D
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D
from torch import nn


RESAMPLE_FILTERS = ((1, 1), (1, 3, 3, 1))
TIME_EMBEDDING_TYPES = ("positional", "fourier")


class FourierTimesteps(nn.Module):
    """`[sin(2 pi b t), cos(2 pi b t)]` with the random frequencies `b` that the network was trained with.

    They stay in float32 whatever dtype the network is cast to: half precision cannot represent a phase of a few
    hundred radians accurately enough.
    """

    frequencies: torch.Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("frequencies", 16 * torch.randn(channels // 2))

    def _apply(self, fn, recurse=True):
        frequencies = self.frequencies
        super()._apply(fn, recurse)
        if self.frequencies.dtype != frequencies.dtype:
            self.frequencies = frequencies.to(self.frequencies.device)
        return self

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        # Phases reach 10^5, where float32 is coarse: round the products in the order of training.
        phases = timesteps.float()[:, None] * (2 * math.pi * self.frequencies)
        return torch.cat([phases.sin(), phases.cos()], dim=1)


class DownBlock(nn.Module):
    """Residual blocks of one resolution of the encoder, and the step down to the next one.

    Args:
        resnets: The residual blocks.
        attentions: For each of them the attention that follows, or `None`.
        downsampler: Residual block that halves the resolution; `None` at the lowest one.
        residual: NCSN++'s convolution of the encoder's input at half the resolution, or `None`.
    """

    def __init__(self, resnets, attentions, downsampler=None, residual=None):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.downsamplers = nn.ModuleList([] if downsampler is None else [downsampler])
        self.residual = residual

    def forward(self, x, emb, pyramid):
        skips = []
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = resnet(x, emb)
            x = x if attention is None else attention(x)
            skips.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x, emb)
            if self.residual is not None:
                x = pyramid = (x + self.residual(pyramid)) / math.sqrt(2)
            skips.append(x)
        return x, skips, pyramid


class UpBlock(nn.Module):
    """Residual blocks of one resolution of the decoder, each with a skip connection, and the step up to the next one.

    Args:
        resnets: The residual blocks.
        attentions: For each of them the attention that follows, or `None`.
        upsampler: Residual block that doubles the resolution; `None` at the highest one.
    """

    def __init__(self, resnets, attentions, upsampler=None):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.upsamplers = nn.ModuleList([] if upsampler is None else [upsampler])

    def forward(self, x, emb, skips):
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = resnet(torch.cat([x, skips.pop()], dim=1), emb)
            x = x if attention is None else attention(x)
        for upsampler in self.upsamplers:
            x = upsampler(x, emb)
        return x


class BlockFactory:
    """Makes the residual blocks and attentions of one `EDMUNet2DModel`.

    Args:
        sample_size: Height and width of the images.
        widths: Channels at each resolution, from the highest one down.
        attention_resolutions: Resolutions with attention.
        time_embedding_dim: Channels of the time embedding that residual blocks take.
        resample_filter: `(1, 1)` or `(1, 3, 3, 1)`.
        dropout: Dropout in training.
    """

    def __init__(self, sample_size, widths, attention_resolutions, time_embedding_dim, resample_filter, dropout):
        self.sample_size = sample_size
        self.widths = widths
        self.attention_resolutions = attention_resolutions
        self.time_embedding_dim = time_embedding_dim
        self.kernel = "fir" if len(resample_filter) == 4 else None
        self.dropout = dropout

    def resnet(self, c_in: int, c_out: int, **resampling: bool) -> ResnetBlock2D:
        """A residual block from `c_in` to `c_out` channels. `up=True` or `down=True` makes it resample."""
        return ResnetBlock2D(
            in_channels=c_in,
            out_channels=c_out,
            temb_channels=self.time_embedding_dim,
            groups=norm_groups(c_in),
            groups_out=norm_groups(c_out),
            eps=1e-6,
            dropout=self.dropout,
            output_scale_factor=math.sqrt(2),
            kernel=self.kernel,
            use_in_shortcut=True if resampling else None,
            **resampling,
        )

    def attention(self, level: int) -> Attention | None:
        """An attention for a resolution (0 is the highest), or `None` if that resolution has none."""
        if self.sample_size >> level not in self.attention_resolutions:
            return None
        width = self.widths[level]
        return Attention(
            width,
            heads=1,
            dim_head=width,
            bias=True,
            eps=1e-6,
            norm_num_groups=norm_groups(width),
            residual_connection=True,
            rescale_output_factor=math.sqrt(2),
        )


class EDMUNet2DModel(ModelMixin, ConfigMixin):
    """DDPM++ (`positional`, no residual encoder) or NCSN++ (`fourier`, residual encoder), called like a `UNet2DModel`.

    It is the raw network `F` of Karras et al. 2022, equation 7; the preconditioning belongs to the scheduler. The
    defaults are those of the published CIFAR-10 network `vp` without classes.

    Args:
        sample_size: Height and width of the images.
        in_channels: Channels of the images.
        out_channels: Channels of the output.
        model_channels: Width of the first convolution.
        block_out_channels: Width at each resolution, from the highest one down.
        layers_per_block: Residual blocks at each resolution of the encoder; the decoder has one more.
        attention_resolutions: Resolutions with attention: after every block of the encoder, after the last block of
            the decoder. The middle of the network always has one.
        time_embedding_type: `positional` or `fourier`.
        time_proj_dim: Width of the embedded noise level, and of the class embedding, which is added to it.
        time_embedding_dim: Width of the MLP behind it.
        residual_encoder: Whether the input is added again, filtered, at each lower resolution of the encoder.
        resample_filter: `(1, 1)` or `(1, 3, 3, 1)`.
        dropout: Dropout in training.
        num_class_embeds: Rows of the class embedding, `None` for a network without classes. If "no class" was trained
            too, it is the last row.

    Raises:
        ValueError: `time_embedding_type` or `resample_filter` has another value.

    Example:
        >>> sizes = {"model_channels": 8, "block_out_channels": (8, 8), "time_proj_dim": 8, "time_embedding_dim": 16}
        >>> network = EDMUNet2DModel(sample_size=8, layers_per_block=1, num_class_embeds=3, **sizes)
        >>> network(torch.randn(2, 3, 8, 8), torch.zeros(2), class_labels=torch.tensor([0, 2])).sample.shape
        torch.Size([2, 3, 8, 8])
    """

    _keep_in_fp32_modules = ["time_proj"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        model_channels: int = 128,
        block_out_channels: tuple[int, ...] = (256, 256, 256),
        layers_per_block: int = 4,
        attention_resolutions: tuple[int, ...] = (16,),
        time_embedding_type: str = "positional",
        time_proj_dim: int = 128,
        time_embedding_dim: int = 512,
        residual_encoder: bool = False,
        resample_filter: tuple[int, ...] = (1, 1),
        dropout: float = 0.0,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        if time_embedding_type not in TIME_EMBEDDING_TYPES:
            raise ValueError(
                f"`time_embedding_type` must be one of {TIME_EMBEDDING_TYPES}, got {time_embedding_type!r}."
            )
        if tuple(resample_filter) not in RESAMPLE_FILTERS:
            raise ValueError(f"`resample_filter` must be one of {RESAMPLE_FILTERS}, got {resample_filter}.")
        blocks = BlockFactory(
            sample_size, block_out_channels, attention_resolutions, time_embedding_dim, resample_filter, dropout
        )

        self.conv_in = nn.Conv2d(in_channels, model_channels, kernel_size=3, padding=1)
        if time_embedding_type == "fourier":
            self.time_proj = FourierTimesteps(time_proj_dim)
        else:
            self.time_proj = Timesteps(time_proj_dim, flip_sin_to_cos=False, downscale_freq_shift=1)
        self.time_embedding = TimestepEmbedding(time_proj_dim, time_embedding_dim)
        self.class_embedding = None if num_class_embeds is None else nn.Embedding(num_class_embeds, time_proj_dim)

        pyramid_filter = tuple(resample_filter) if residual_encoder else None
        skip_widths = self._make_encoder(blocks, layers_per_block, in_channels, model_channels, pyramid_filter)
        width = skip_widths[-1]
        self.mid_block = UNetMidBlock2D(
            in_channels=width,
            temb_channels=time_embedding_dim,
            dropout=dropout,
            resnet_eps=1e-6,
            resnet_groups=norm_groups(width),
            attn_groups=norm_groups(width),
            attention_head_dim=width,
            output_scale_factor=math.sqrt(2),
        )
        self._make_decoder(blocks, layers_per_block, skip_widths)
        width = block_out_channels[0]
        self.conv_norm_out = nn.GroupNorm(norm_groups(width), width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, out_channels, kernel_size=3, padding=1)

    def _make_encoder(
        self,
        blocks: BlockFactory,
        layers_per_block: int,
        in_channels: int,
        model_channels: int,
        pyramid_filter: tuple[int, ...] | None,
    ) -> list[int]:
        """Make `down_blocks`. Returns the widths of all skip connections, the lowest resolution last."""
        self.down_blocks = nn.ModuleList()
        skip_widths, c_in, c_pyramid = [model_channels], model_channels, in_channels
        lowest = len(blocks.widths) - 1
        for level, width in enumerate(blocks.widths):
            resnets = []
            for _ in range(layers_per_block):
                resnets.append(blocks.resnet(c_in, width))
                skip_widths.append(width)
                c_in = width
            attentions = [blocks.attention(level) for _ in resnets]
            downsampler, residual = None, None
            if level < lowest:
                downsampler = blocks.resnet(c_in, c_in, down=True)
                skip_widths.append(c_in)
                if pyramid_filter is not None:
                    residual = FirDownsample2D(c_pyramid, c_in, use_conv=True, fir_kernel=pyramid_filter)
                    c_pyramid = c_in
            self.down_blocks.append(DownBlock(resnets, attentions, downsampler, residual))
        return skip_widths

    def _make_decoder(self, blocks: BlockFactory, layers_per_block: int, skip_widths: list[int]) -> None:
        """Make `up_blocks`, which use up `skip_widths` from its end."""
        self.up_blocks = nn.ModuleList()
        c_in = skip_widths[-1]
        for level, width in reversed(list(enumerate(blocks.widths))):
            resnets = []
            for _ in range(layers_per_block + 1):
                resnets.append(blocks.resnet(c_in + skip_widths.pop(), width))
                c_in = width
            attentions = [None] * layers_per_block + [blocks.attention(level)]
            upsampler = blocks.resnet(width, width, up=True) if level > 0 else None
            self.up_blocks.append(UpBlock(resnets, attentions, upsampler))

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """The raw output `F(c_in * x, c_noise, y)`.

        Args:
            sample: `c_in * x`, shape `(N, C, H, W)`, in the network's dtype.
            timestep: `c_noise`, a number or shape `(N,)`.
            class_labels: Rows of the class embedding, shape `(N,)`.
            return_dict: Whether to return a `UNet2DOutput` or a tuple.

        Raises:
            ValueError: `class_labels` is missing, or given to a network without classes.
        """
        if self.class_embedding is None and class_labels is not None:
            raise ValueError(f"`class_labels` must be None for a network without classes, got {class_labels!r}.")
        if self.class_embedding is not None and class_labels is None:
            raise ValueError("`class_labels` must be one label per image for a network with classes, got None.")
        timestep = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).expand(len(sample))
        emb = self.time_proj(timestep).to(self.conv_in.weight.dtype)
        if self.class_embedding is not None:
            emb = emb + self.class_embedding(class_labels)
        emb = self.time_embedding(emb)

        x, pyramid = self.conv_in(sample), sample
        skips = [x]
        for block in self.down_blocks:
            x, more, pyramid = block(x, emb, pyramid)
            skips += more
        x = self.mid_block(x, emb)
        for block in self.up_blocks:
            x = block(x, emb, skips)
        x = self.conv_out(nn.functional.silu(self.conv_norm_out(x)))
        return UNet2DOutput(sample=x) if return_dict else (x,)


def norm_groups(channels: int) -> int:
    """Number of groups of a group norm: 32, or fewer in narrow networks so that a group has four channels."""
    return min(32, channels // 4)
