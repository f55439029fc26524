"""From the index of a class to what a network is told about it."""

from functools import cached_property

import torch
from diffusers import DiTTransformer2DModel, ModelMixin, UNet2DConditionModel, UNet2DModel
from torch import nn

from ..common.images import check_floating, content_hash


class NoClasses(nn.Module):
    """Networks that know of no classes: a denoiser of them, and nothing else, can be had.

    As of the other kinds of conditioning, `num_classes` is the number of classes, `rows` that of all labels that the
    network can be told, and `null_class` the label for "no class" or `None`; `settings` is what else a record should
    say. A call gives the keyword arguments of the network for labels of shape `(N,)`.
    """

    num_classes, rows, null_class = 0, 0, None
    settings: dict[str, str] = {}


class ClassLabels(nn.Module):
    """Networks with a class embedding of their own: they are told the index.

    Args:
        network: `UNet2DModel` or `UNet2DConditionModel` (without cross-attention), with `num_class_embeds` or
            `class_embed_type="timestep"`; or a `DiTTransformer2DModel`, whose last row is always the null class.
        num_classes: Number of classes; needed only for `class_embed_type="timestep"`.
        null_class: Index of the embedding row that training with label dropout reserved for "no class"; it must be
            the last one.

    Raises:
        ValueError: There is no usable class embedding, or the numbers do not agree with it.
    """

    settings: dict[str, str] = {}

    def __init__(self, network: ModelMixin, num_classes: int | None, null_class: int | None):
        super().__init__()
        self.others = without_text("unet", network)
        class_embed_type = getattr(network.config, "class_embed_type", None)  # `EDMUNet2DModel` has one kind only
        if isinstance(network, DiTTransformer2DModel):
            if network.training:
                raise ValueError(
                    "`transformer` is in training mode, where it drops class labels at random; accepted is evaluation "
                    "mode: call its `eval()`."
                )
            self.rows = network.config.num_embeds_ada_norm + 1
            null_class = self.rows - 1 if null_class is None else null_class
        elif not has_classes("unet", network) or class_embed_type not in (None, "timestep"):
            raise ValueError(
                f"`unet` has no class embedding (num_class_embeds={network.config.num_class_embeds}, "
                f"class_embed_type={class_embed_type!r}); accepted is a class-conditional network that "
                "takes integer class labels."
            )
        elif class_embed_type == "timestep":  # labels are embedded by a function, not a table
            if not num_classes or null_class is not None:
                raise ValueError(
                    f"`unet` has class_embed_type='timestep': it needs `num_classes` (or an `id2label`), given "
                    f"{num_classes}, and has no row for a `null_class`, given {null_class}."
                )
            if isinstance(network, UNet2DModel) and network.dtype != torch.float32:
                raise ValueError(
                    f"`unet` (UNet2DModel) has class_embed_type='timestep' and dtype {network.dtype}, for which "
                    "diffusers does not cast the embedded labels; accepted is torch.float32 (with torch.autocast, if "
                    "need be)."
                )
            self.rows = num_classes
        else:
            self.rows = network.config.num_class_embeds
        if null_class is not None and null_class != self.rows - 1:
            raise ValueError(
                f"`null_class` is {null_class}; accepted is the last of the {self.rows} embedding rows, "
                f"{self.rows - 1}, or None."
            )
        self.null_class = null_class
        self.num_classes = self.rows - (null_class is not None)
        if num_classes not in (None, self.num_classes):
            raise ValueError(
                f"`num_classes` (the size of `id2label`) is {num_classes}, but the network has {self.num_classes} "
                f"classes ({self.rows} embedding rows, null_class={null_class})."
            )

    def forward(self, class_labels: torch.Tensor) -> dict:
        return {"class_labels": class_labels, **self.others}


class PromptEmbeddings(nn.Module):
    """Text-conditional networks: a class is what its prompts say.

    Args:
        network: A `UNet2DConditionModel` with cross-attention, and without a class embedding.
        embeddings: `encoder_hidden_states` of each class, shape `(K, tokens, channels)`, or `(K + 1, ...)` with a last
            row for "no class" (the empty prompt's), as `embed_prompts` makes them.
        num_classes: Number of classes, if known.
        null_class: Index of the row for "no class", which must be the last one, or `None`.

    Raises:
        TypeError: `embeddings` is no floating-point tensor.
        ValueError: The network takes no text or more than text, or the numbers do not agree.
    """

    embeddings: torch.Tensor

    def __init__(self, network: ModelMixin, embeddings: torch.Tensor, num_classes: int | None, null_class: int | None):
        super().__init__()
        if not isinstance(network, UNet2DConditionModel) or not has_cross_attention(network):
            raise ValueError(
                f"The network ({type(network).__name__}) takes no prompts; accepted for `prompts` "
                "(`prompt_embeddings`) is a UNet2DConditionModel with cross-attention blocks."
            )
        check_condition_model("unet", network)
        if network.class_embedding is not None:
            raise ValueError(
                f"`unet` has a class embedding (num_class_embeds={network.config.num_class_embeds}) besides "
                "its text; accepted is one without, since what its labels mean is not known here."
            )
        check_floating(embeddings, "prompt_embeddings")
        channels = network.config.cross_attention_dim
        if embeddings.ndim != 3 or embeddings.shape[2] != channels:
            raise ValueError(
                f"`prompt_embeddings` has the shape {tuple(embeddings.shape)}; accepted is (classes, tokens, "
                f"{channels}), {channels} being the network's cross_attention_dim."
            )
        self.rows = len(embeddings)
        self.null_class = null_class
        self.num_classes = self.rows - (null_class is not None)
        if null_class not in (None, self.rows - 1) or num_classes not in (None, self.num_classes):
            raise ValueError(
                f"`prompt_embeddings` has {self.rows} rows for num_classes={num_classes} and null_class={null_class}; "
                "accepted is one for each class, and a last one where there is a null class."
            )
        self.register_buffer("embeddings", embeddings.to(network.dtype), persistent=False)

    @cached_property
    def settings(self) -> dict:
        """A hash, as made once: the embeddings of a thousand classes are large."""
        return {"prompt_embeddings": content_hash(self.embeddings)}

    def forward(self, class_labels: torch.Tensor) -> dict:
        return {"encoder_hidden_states": self.embeddings[class_labels]}


def has_classes(name: str, network: ModelMixin) -> bool:
    """Whether a network takes class labels.

    Raises:
        TypeError: It is of a class for which this is not known.
    """
    if isinstance(network, DiTTransformer2DModel):
        return True
    if not isinstance(network, nn.Module) or not hasattr(network, "class_embedding"):
        raise TypeError(
            f"`{name}` is a {type(network).__name__}; accepted are UNet2DModel, UNet2DConditionModel, "
            "DiTTransformer2DModel, and networks with their arguments, configuration and `class_embedding`."
        )
    return network.class_embedding is not None


def without_text(name: str, network: ModelMixin) -> dict:
    """Keyword arguments by which a network is told that there is no text.

    Raises:
        ValueError: It cannot do without.
    """
    if not isinstance(network, UNet2DConditionModel):
        return {}
    check_condition_model(name, network)
    if has_cross_attention(network):
        raise ValueError(
            f"`{name}` (UNet2DConditionModel) has cross-attention, to which something must be shown: its classes are "
            "prompts. Accepted are `prompt_embeddings` beside it (in `LatentDiffusionClassifierPipeline`: `prompts`, "
            "`tokenizer` and `text_encoder`), or a network without cross-attention blocks."
        )
    return {"encoder_hidden_states": None}


def has_cross_attention(network: UNet2DConditionModel) -> bool:
    """Whether the network looks at `encoder_hidden_states`."""
    return any(getattr(block, "has_cross_attention", False) for block in network.modules())


def check_condition_model(name: str, network: UNet2DConditionModel) -> None:
    """Refuse a network that must be told more than time, class label and text."""
    for setting in ("encoder_hid_dim_type", "addition_embed_type", "time_cond_proj_dim"):
        if (value := network.config[setting]) is not None:
            raise ValueError(
                f"`{name}` (UNet2DConditionModel) has {setting}={value!r}: it is conditioned on more than a class or "
                "a prompt; accepted is None."
            )
