"""Conditioning: from the label of a class to the arguments by which a network learns of it."""

from functools import cached_property

import torch
from diffusers import DiTTransformer2DModel, ModelMixin, UNet2DConditionModel, UNet2DModel
from torch import nn

from ..common.images import check_floating, content_hash
from .networks import has_classes


class Conditioning(nn.Module):
    """From labels of shape `(N,)` to keyword arguments of the network.

    Attributes:
        num_classes: Number of classes.
        rows: Number of labels, `num_classes` or one more with a null class.
        null_class: Label for "no class", `rows - 1`, or `None`.
    """

    num_classes: int
    rows: int
    null_class: int | None

    @property
    def settings(self) -> dict[str, str]:
        """What a record states about the conditioning."""
        return {}

    def forward(self, class_labels: torch.Tensor) -> dict:
        raise NotImplementedError


class NoClasses(Conditioning):
    """Conditioning of a network without classes, which can denoise but not classify. Labels are ignored.

    Args:
        name: Name of the network's argument, for messages.
        network: A network without a class embedding.

    Raises:
        TypeError: The class of the network is not supported.
        ValueError: The network has classes, or needs text.
    """

    num_classes, rows, null_class = 0, 0, None

    def __init__(self, name: str, network: ModelMixin):
        super().__init__()
        if has_classes(name, network):
            raise ValueError(
                f"`{name}` must be a network without classes, as an unconditional denoiser and num_classes=0 require, "
                "got one with a class embedding."
            )
        self.arguments = without_text(name, network)

    def forward(self, class_labels: torch.Tensor) -> dict:
        return self.arguments


class ClassLabels(Conditioning):
    """Conditioning of a network with a class embedding: it takes the label itself.

    Args:
        network: A `UNet2DModel` or `UNet2DConditionModel` (without cross-attention), with `num_class_embeds` or
            `class_embed_type="timestep"`; or a `DiTTransformer2DModel`, whose last row is always the null class.
        num_classes: Number of classes. Required only with `class_embed_type="timestep"`.
        null_class: Index of the embedding row that training with label dropout reserved for "no class". It must be
            the last row.

    Raises:
        ValueError: The network has no usable class embedding, or `num_classes` or `null_class` disagrees with it.
    """

    def __init__(self, network: ModelMixin, num_classes: int | None, null_class: int | None):
        super().__init__()
        self.other_arguments = without_text("unet", network)
        self.rows = embedding_rows(network, num_classes, null_class)
        if isinstance(network, DiTTransformer2DModel) and null_class is None:
            null_class = self.rows - 1
        if null_class not in (None, self.rows - 1):
            raise ValueError(
                f"`null_class` must be None or {self.rows - 1}, the last of the {self.rows} embedding rows, got "
                f"{null_class}."
            )
        self.null_class = null_class
        self.num_classes = self.rows if null_class is None else self.rows - 1
        if num_classes not in (None, self.num_classes):
            raise ValueError(
                f"`num_classes` (the size of `id2label`) must be {self.num_classes}, since the network has "
                f"{self.num_classes} classes ({self.rows} embedding rows, null_class={null_class}), got {num_classes}."
            )

    def forward(self, class_labels: torch.Tensor) -> dict:
        return {"class_labels": class_labels, **self.other_arguments}


class PromptEmbeddings(Conditioning):
    """Conditioning of a text-conditional network: a class is described by its prompts.

    Args:
        network: A `UNet2DConditionModel` with cross-attention and without a class embedding.
        embeddings: `encoder_hidden_states` of each class, shape `(K, tokens, channels)`, or `(K + 1, ...)` with a last
            row for "no class" (the empty prompt), as `embed_prompts` returns them.
        num_classes: Number of classes K, if known.
        null_class: Index of the row for "no class", which must be the last one, or `None`.

    Raises:
        TypeError: `embeddings` is not a floating-point tensor.
        ValueError: The network takes no text, or more than text; or the numbers disagree.
    """

    embeddings: torch.Tensor

    def __init__(self, network: ModelMixin, embeddings: torch.Tensor, num_classes: int | None, null_class: int | None):
        super().__init__()
        if not isinstance(network, UNet2DConditionModel) or not has_cross_attention(network):
            raise ValueError(
                "`prompts` (`prompt_embeddings`) must be None unless the network is a UNet2DConditionModel with "
                f"cross-attention blocks, got some for a {type(network).__name__} that takes no prompts."
            )
        check_condition_model("unet", network)
        if network.class_embedding is not None:
            raise ValueError(
                "`unet` must have no class embedding beside its prompts, got "
                f"num_class_embeds={network.config.num_class_embeds}. What its labels mean is unknown."
            )
        check_floating(embeddings, "prompt_embeddings")
        channels = network.config.cross_attention_dim
        if embeddings.ndim != 3 or embeddings.shape[2] != channels:
            raise ValueError(
                f"`prompt_embeddings` must have the shape (classes, tokens, {channels}), {channels} being the "
                f"network's cross_attention_dim, got {tuple(embeddings.shape)}."
            )
        self.rows = len(embeddings)
        self.null_class = null_class
        self.num_classes = self.rows if null_class is None else self.rows - 1
        if null_class not in (None, self.rows - 1) or num_classes not in (None, self.num_classes):
            raise ValueError(
                "`prompt_embeddings` must have one row per class, and a last one if there is a null class, got "
                f"{self.rows} rows for num_classes={num_classes} and null_class={null_class}."
            )
        self.register_buffer("embeddings", embeddings.to(network.dtype), persistent=False)

    @cached_property
    def settings(self) -> dict[str, str]:
        """Hash of the embeddings, computed once, because the embeddings of a thousand classes are large."""
        return {"prompt_embeddings": content_hash(self.embeddings)}

    def forward(self, class_labels: torch.Tensor) -> dict:
        return {"encoder_hidden_states": self.embeddings[class_labels]}


def check_labels(class_labels: torch.Tensor, num_images: int, rows: int) -> None:
    """Raise unless these are labels of images.

    Args:
        class_labels: What to check.
        num_images: Number of images.
        rows: Number of labels, the null class included.

    Raises:
        TypeError: It is not a tensor of integers.
        ValueError: It is not one label for each image, or a label is out of range.
    """
    if not isinstance(class_labels, torch.Tensor) or class_labels.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"`class_labels` must be a tensor of integers (int64 or int32), got {class_labels!r}.")
    if class_labels.shape != (num_images,) or class_labels.min() < 0 or class_labels.max() >= rows:
        raise ValueError(
            f"`class_labels` must be one label from 0 to {rows - 1} for each of the {num_images} images, got "
            f"{class_labels.tolist()}."
        )


def embedding_rows(network: ModelMixin, num_classes: int | None, null_class: int | None) -> int:
    """Number of labels that the class embedding of a network knows, the null class included.

    Raises:
        ValueError: The network has no class embedding that takes integer labels and is ready for use, or its number
            of labels is not known.
    """
    if isinstance(network, DiTTransformer2DModel):
        if network.training:
            raise ValueError(
                "`transformer` must be in evaluation mode, got training mode, in which it drops class labels at "
                "random. Call its `eval()`."
            )
        return network.config.num_embeds_ada_norm + 1
    class_embed_type = getattr(network.config, "class_embed_type", None)  # `EDMUNet2DModel` has no such setting
    if not has_classes("unet", network) or class_embed_type not in (None, "timestep"):
        raise ValueError(
            "`unet` must be a class-conditional network that takes integer labels, got one with no class embedding "
            f"for them (num_class_embeds={network.config.num_class_embeds}, class_embed_type={class_embed_type!r})."
        )
    if class_embed_type is None:
        return network.config.num_class_embeds
    # "timestep": labels are embedded by a function, not by a table
    if num_classes is None:
        raise ValueError(
            "`num_classes` (or an `id2label`) must be given for a network with class_embed_type='timestep', got None."
        )
    if null_class is not None:
        raise ValueError(
            f"`null_class` must be None for a network with class_embed_type='timestep', got {null_class}. Such a "
            "network has no row for it."
        )
    if isinstance(network, UNet2DModel) and network.dtype != torch.float32:
        raise ValueError(
            "`unet` must have dtype torch.float32 as a UNet2DModel with class_embed_type='timestep', for which "
            f"diffusers does not cast the embedded labels, got {network.dtype}. Use torch.autocast for lower "
            "precision."
        )
    return num_classes


def without_text(name: str, network: ModelMixin) -> dict:
    """Arguments by which a network without cross-attention is called without text.

    Raises:
        ValueError: The network needs text.
    """
    if not isinstance(network, UNet2DConditionModel):
        return {}
    check_condition_model(name, network)
    if has_cross_attention(network):
        raise ValueError(
            f"`{name}` must have no cross-attention blocks unless its classes are prompts, got a UNet2DConditionModel "
            "with cross-attention. Pass `prompt_embeddings` beside it (in `LatentDiffusionClassifierPipeline`: "
            "`prompts`, `tokenizer` and `text_encoder`)."
        )
    return {"encoder_hidden_states": None}


def has_cross_attention(network: UNet2DConditionModel) -> bool:
    """Whether the network attends to `encoder_hidden_states`."""
    # The configuration names classes of blocks only; the blocks themselves have this attribute.
    return any(getattr(block, "has_cross_attention", False) for block in network.modules())


def check_condition_model(name: str, network: UNet2DConditionModel) -> None:
    """Raise a `ValueError` if a network is conditioned on more than time, class label and text."""
    for setting in ("encoder_hid_dim_type", "addition_embed_type", "time_cond_proj_dim"):
        value = network.config[setting]
        if value is not None:
            raise ValueError(
                f"`{name}` must be a UNet2DConditionModel with {setting}=None, got {setting}={value!r}, which "
                "conditions it on more than a class or a prompt."
            )
