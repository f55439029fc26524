"""Checks of the components of a latent pipeline, and of its prompts."""

from collections.abc import Mapping, Sequence

from diffusers import AutoencoderKL, DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from diffusers.schedulers import SchedulerMixin
from transformers import CLIPTextModel, CLIPTokenizer

from ..common.checks import check_kind
from ..diffusion.prompts import check_length, read_prompts


def check_components(
    vae: object,
    scheduler: object,
    unet: object,
    transformer: object,
    tokenizer: object,
    text_encoder: object,
    pixel_unet: object,
    pixel_scheduler: object,
) -> None:
    """Raise unless the components are of supported classes and together make a latent model.

    Raises:
        TypeError: A component is of a class that is not supported.
        ValueError: One is missing, or one too many is given.
    """
    check_kind("vae", vae, AutoencoderKL)
    check_kind("scheduler", scheduler, SchedulerMixin)
    unets = (UNet2DConditionModel, UNet2DModel)
    for name, component, kinds in (
        ("unet", unet, unets),
        ("transformer", transformer, (DiTTransformer2DModel,)),
        ("tokenizer", tokenizer, (CLIPTokenizer,)),
        ("text_encoder", text_encoder, (CLIPTextModel,)),
        ("pixel_unet", pixel_unet, unets),
        ("pixel_scheduler", pixel_scheduler, (SchedulerMixin,)),
    ):
        if component is not None:
            check_kind(name, component, *kinds)
    if unet is None and transformer is None:
        raise ValueError("`unet` or `transformer` must be given, got neither.")
    if unet is not None and transformer is not None:
        raise ValueError("`unet` or `transformer` must be given, got both.")
    if (pixel_unet is None) != (pixel_scheduler is None):
        raise ValueError("`pixel_unet` and `pixel_scheduler` must both be given or both be None, got only one.")


def check_prompts(
    prompts: Mapping | Sequence,
    tokenizer: CLIPTokenizer | None,
    text_encoder: CLIPTextModel | None,
    id2label: dict | None,
) -> dict[int, list[str]]:
    """The prompts by class index, a list for each class; raises a `ValueError` if they do not fit the other parts."""
    if tokenizer is None or text_encoder is None:
        raise ValueError("`tokenizer` and `text_encoder` must be given with `prompts`, got None.")
    by_class = read_prompts(prompts)
    if id2label is not None and len(id2label) != len(by_class):
        raise ValueError(f"`prompts` must have as many classes as `id2label` ({len(id2label)}), got {len(by_class)}.")
    check_length(by_class, tokenizer)
    return by_class
