"""The networks of OpenAI's guided-diffusion and improved-diffusion that a stock `UNet2DModel` cannot express."""

import inspect

from diffusers import ModelMixin as ModelMixin  # diffusers looks for it in the modules of networks that it loads
from diffusers import UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps


STOCK_ARGUMENTS = tuple(inspect.signature(UNet2DModel.__init__).parameters)
"""Arguments of `UNet2DModel`."""


class OpenAIUNet2DModel(UNet2DModel):
    """A `UNet2DModel` with three more settings, which some networks of OpenAI need (arXiv:2102.09672, 2105.05233).

    All other arguments are those of `UNet2DModel`.

    Args:
        num_attention_heads: Number of heads of every attention, whatever its width. `attention_head_dim` must be
            `None` then. Default: as many heads of the width `attention_head_dim` as fit.
        time_proj_dim: Number of sines and cosines of the time embedding. Default: `block_out_channels[0]`.
        timestep_scale: Factor of the timestep. A network that was trained in T steps with `rescale_timesteps` has
            1000 / T.

    Raises:
        ValueError: Two settings exclude each other, or a width is not a multiple of the number of heads.

    Example:
        >>> blocks = {"down_block_types": ("AttnDownBlock2D",), "up_block_types": ("AttnUpBlock2D",)}
        >>> sizes = {"block_out_channels": (32,), "layers_per_block": 1, "sample_size": 8, "attention_head_dim": None}
        >>> network = OpenAIUNet2DModel(**blocks, **sizes, num_attention_heads=4, timestep_scale=0.25)
        >>> network(torch.randn(2, 3, 8, 8), torch.tensor([0.0, 3999.0])).sample.shape
        torch.Size([2, 3, 8, 8])
    """

    # Every argument is spelled out, since diffusers loads only those that it finds in the signature.
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
        num_attention_heads: int | None = None,
        time_proj_dim: int | None = None,
        timestep_scale: float = 1.0,
    ):
        if num_attention_heads is not None and attention_head_dim is not None:
            raise ValueError(
                f"`attention_head_dim` must be None beside `num_attention_heads`, got {attention_head_dim}."
            )
        if time_embedding_type != "positional" and (time_proj_dim is not None or timestep_scale != 1):
            raise ValueError(
                "`time_embedding_type` must be 'positional' beside `time_proj_dim` or `timestep_scale`, got "
                f"{time_embedding_type!r}."
            )
        # By now `register_to_config` has put the arguments, under their names, into the configuration.
        super().__init__(**{name: self.config[name] for name in STOCK_ARGUMENTS if name in self.config})
        if num_attention_heads is not None:
            for part in self.modules():
                if isinstance(part, Attention):
                    set_heads(part, num_attention_heads)
        if time_proj_dim is not None:
            self.time_proj = Timesteps(time_proj_dim, flip_sin_to_cos, freq_shift)
            self.time_embedding = TimestepEmbedding(time_proj_dim, time_embedding_dim or 4 * block_out_channels[0])
        if timestep_scale != 1:
            self.time_proj.scale = timestep_scale


def set_heads(attention: Attention, num_heads: int) -> None:
    """Divide an attention into another number of heads, with the same weights.

    Raises:
        ValueError: The width of the attention is not a multiple of `num_heads`.
    """
    if attention.inner_dim % num_heads != 0:
        raise ValueError(
            f"`num_attention_heads` must divide the widths with attention, got {num_heads} for a width of "
            f"{attention.inner_dim}."
        )
    attention.heads = attention.sliceable_head_dim = num_heads
    attention.scale = (attention.inner_dim // num_heads) ** -0.5
