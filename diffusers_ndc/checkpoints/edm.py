"""EDM checkpoints as networks and schedulers of diffusers.

DDPM++ and NCSN++ become an `EDMUNet2DModel`, ADM a stock `UNet2DModel`; both name their blocks alike. Labels, which
the published networks take as one-hot vectors, become rows of an embedding.
"""

import math

import torch
from diffusers import EDMEulerScheduler, UNet2DModel
from diffusers.schedulers import SchedulerMixin

from .edm_arguments import arguments
from .edm_schedulers import IDDPMPrecondScheduler, VEPrecondScheduler, VPPrecondScheduler
from .edm_unet import EDMUNet2DModel
from .edm_weights import converted_state_dict
from .files import EDMCheckpoint
from .state_dicts import assign_weights


EDM_SIGMA_MIN, EDM_SIGMA_MAX = 0.002, 80.0
"""Noise levels between which Karras et al. sample (Table 1)."""

HEAD_WIDTH = 64
NORM_GROUPS = 32


def convert_scheduler(checkpoint: EDMCheckpoint) -> SchedulerMixin:
    """The preconditioning of a checkpoint, with the noise levels between which it may be used.

    `EDMPrecond` itself takes every noise level from 0 to infinity. If a checkpoint keeps that, the range is the one in
    which Karras et al. sample, 0.002 to 80 (Table 1); hardly any training level lies outside.

    Args:
        checkpoint: The checkpoint.

    Returns:
        An `EDMEulerScheduler`, `VPPrecondScheduler`, `VEPrecondScheduler` or `IDDPMPrecondScheduler`.

    Raises:
        ValueError: An argument of the checkpoint is missing, unknown or not supported, or the noise levels `u` of an
            iDDPM checkpoint are missing.
    """
    given = arguments(checkpoint)
    if checkpoint.class_name == "EDMPrecond":
        return EDMEulerScheduler(
            sigma_min=given["sigma_min"] or EDM_SIGMA_MIN,
            sigma_max=given["sigma_max"] if math.isfinite(given["sigma_max"]) else EDM_SIGMA_MAX,
            sigma_data=given["sigma_data"],
        )
    if checkpoint.class_name == "VPPrecond":
        beta_d, beta_min = given["beta_d"], given["beta_min"]
        # in float32 as in the original, because the smallest level depends on it
        t = torch.tensor([given["epsilon_t"], 1.0])
        low, high = ((0.5 * beta_d * t**2 + beta_min * t).exp() - 1).sqrt().tolist()
        return VPPrecondScheduler(low, high, beta_d, beta_min, given["M"])
    if checkpoint.class_name == "VEPrecond":
        return VEPrecondScheduler(float(given["sigma_min"]), float(given["sigma_max"]))
    levels = checkpoint.state_dict.get("u")
    shape = None if levels is None else tuple(levels.shape)
    if levels is None or shape != (given["M"] + 1,):
        raise ValueError(
            f"{checkpoint.source} must have noise levels 'u' of the shape ({given['M'] + 1},), got {shape}."
        )
    sigmas = levels.tolist()
    return IDDPMPrecondScheduler(sigmas, sigma_min=sigmas[-2], sigma_max=sigmas[0])


def convert_network(checkpoint: EDMCheckpoint, no_label_row: bool = False) -> EDMUNet2DModel | UNet2DModel:
    """The network of a checkpoint, in float32, in evaluation mode.

    Args:
        checkpoint: The checkpoint.
        no_label_row: Whether the class embedding gets a last row for the label of all zeros. Networks that were
            trained without label dropout, like the published ones, have never seen it.

    Returns:
        An `EDMUNet2DModel` (DDPM++, NCSN++) or a `UNet2DModel` (ADM).

    Raises:
        ValueError: An argument of the checkpoint is missing, unknown or not supported; the weights are not those of
            such a network; or it is an ADM narrower than a `UNet2DModel` can express.
    """
    given = arguments(checkpoint)
    label_rows = None
    if given["label_dim"] > 0:
        label_rows = given["label_dim"] + 1 if no_label_row else given["label_dim"]
    try:
        with torch.device("meta"):
            if checkpoint.model_type == "DhariwalUNet":
                network = adm_network(checkpoint, given, label_rows)
            else:
                network = song_network(given, label_rows)
        weights = converted_state_dict(checkpoint, given, no_label_row)
    except (ArithmeticError, LookupError, RuntimeError) as error:
        raise ValueError(
            f"{checkpoint.source} must have the arguments and weights of a {checkpoint.model_type}, got some with "
            f"which it cannot be built ({error!r})."
        ) from error
    assign_weights(network, weights, checkpoint.source)
    return network.eval()


def song_network(given: dict, label_rows: int | None) -> EDMUNet2DModel:
    """DDPM++ or NCSN++, without the checkpoint's weights.

    Args:
        given: The checkpoint's `arguments`.
        label_rows: Rows of the class embedding, or `None`.
    """
    width = given["model_channels"]
    return EDMUNet2DModel(
        sample_size=given["img_resolution"],
        in_channels=given["img_channels"],
        out_channels=given["img_channels"],
        model_channels=width,
        block_out_channels=tuple(width * multiple for multiple in given["channel_mult"]),
        layers_per_block=given["num_blocks"],
        attention_resolutions=tuple(given["attn_resolutions"]),
        time_embedding_type=given["embedding_type"],
        time_proj_dim=width * given["channel_mult_noise"],
        time_embedding_dim=width * given["channel_mult_emb"],
        residual_encoder=given["encoder_type"] == "residual",
        resample_filter=tuple(given["resample_filter"]),
        dropout=given["dropout"],
        num_class_embeds=label_rows,
    )


def adm_network(checkpoint: EDMCheckpoint, given: dict, label_rows: int | None) -> UNet2DModel:
    """ADM as a `UNet2DModel`, without the checkpoint's weights.

    Args:
        checkpoint: The checkpoint, for the message.
        given: Its `arguments`.
        label_rows: Rows of the class embedding, or `None`.

    Raises:
        ValueError: The network is too narrow: a `UNet2DModel` has one number of groups for all its norms, and heads of
            one width.
    """
    resolution = given["img_resolution"]
    widths = tuple(given["model_channels"] * multiple for multiple in given["channel_mult"])
    has_attention = [resolution >> level in given["attn_resolutions"] for level in range(len(widths))]
    attended_widths = [width for width, attended in zip(widths, has_attention, strict=True) if attended]
    attended_widths.append(widths[-1])  # the middle of the network
    if min(widths) < 4 * NORM_GROUPS or any(width % HEAD_WIDTH != 0 for width in attended_widths):
        raise ValueError(
            f"{checkpoint.source} must be an ADM with widths of at least {4 * NORM_GROUPS}, and multiples of "
            f"{HEAD_WIDTH} where there is attention, got the widths {widths}."
        )
    down_blocks = tuple("AttnDownBlock2D" if attended else "ResnetDownsampleBlock2D" for attended in has_attention)
    up_blocks = tuple("AttnUpBlock2D" if attended else "ResnetUpsampleBlock2D" for attended in has_attention[::-1])
    return UNet2DModel(
        sample_size=resolution,
        in_channels=given["img_channels"],
        out_channels=given["img_channels"],
        time_embedding_type="positional",
        time_embedding_dim=given["model_channels"] * given["channel_mult_emb"],
        flip_sin_to_cos=True,
        freq_shift=0,
        block_out_channels=widths,
        layers_per_block=given["num_blocks"],
        down_block_types=down_blocks,
        up_block_types=up_blocks,
        downsample_type="resnet",
        upsample_type="resnet",
        dropout=given["dropout"],
        attention_head_dim=HEAD_WIDTH,
        norm_num_groups=NORM_GROUPS,
        attn_norm_num_groups=NORM_GROUPS,
        norm_eps=1e-5,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=label_rows,
    )
