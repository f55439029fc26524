"""Names and shapes of the weights of published networks of EDM and of OpenAI, from their description, and weights."""

import math

import torch


def published_shapes(class_name: str, init_kwargs: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters and buffers of a published network, from its description alone."""
    network = EDMShapes(init_kwargs)
    network.embedding()
    network.encoder()
    network.decoder()
    network.output(init_kwargs["img_channels"] * (2 if class_name == "iDDPMPrecond" else 1))
    return network.shapes


class EDMShapes:
    """A network of EDM, part by part: each method adds the names and shapes of one, in the order of the program.

    Args:
        init_kwargs: Description of the network, as its checkpoint has it.

    The attribute `shapes` has what was added so far.
    """

    def __init__(self, init_kwargs: dict):
        self.song = init_kwargs["model_type"] == "SongUNet"
        base = {"model_channels": 128, "channel_mult": [2, 2, 2], "num_blocks": 4, "attn_resolutions": [16]}
        if not self.song:
            base = {
                "model_channels": 192,
                "channel_mult": [1, 2, 3, 4],
                "num_blocks": 3,
                "attn_resolutions": [32, 16, 8],
            }
        self.given = {"channel_mult_noise": 1, "resample_filter": [1, 1], "augment_dim": 0, **base, **init_kwargs}
        self.widths = [self.given["model_channels"] * multiple for multiple in self.given["channel_mult"]]
        self.embedded = 4 * self.given["model_channels"]
        self.channels = self.given["model_channels"] if self.song else self.widths[0]
        self.skips: list[int] = []
        self.shapes: dict[str, tuple[int, ...]] = {}

    def affine(self, name: str, *shape: int, bias: bool = True) -> None:
        self.shapes[f"model.{name}.weight"] = shape
        if bias:
            self.shapes[f"model.{name}.bias"] = shape[:1]

    def resample_filter(self, name: str) -> None:
        taps = len(self.given["resample_filter"])
        self.shapes[f"model.{name}.resample_filter"] = (1, 1, taps, taps)

    def block(self, name: str, c_in: int, c: int, attention: bool = False, resampled: bool = False) -> None:
        """A residual block from `c_in` to `c` channels, after which there are `c`."""
        self.affine(f"{name}.norm0", c_in)
        self.affine(f"{name}.conv0", c, c_in, 3, 3)
        self.affine(f"{name}.affine", c if self.song else 2 * c, self.embedded)
        self.affine(f"{name}.norm1", c)
        self.affine(f"{name}.conv1", c, c, 3, 3)
        if c_in != c or (resampled and self.song):
            self.affine(f"{name}.skip", c, c_in, 1, 1)
        if resampled:
            self.resample_filter(f"{name}.conv0")
            self.resample_filter(f"{name}.skip")
        if attention:
            self.affine(f"{name}.norm2", c)
            self.affine(f"{name}.qkv", 3 * c, c, 1, 1)
            self.affine(f"{name}.proj", c, c, 1, 1)
        self.channels = c

    def embedding(self) -> None:
        """What makes one vector of noise level, class and augmentation."""
        given, e = self.given, self.embedded
        z = given["model_channels"] * given["channel_mult_noise"]
        if given.get("embedding_type") == "fourier":
            self.shapes["model.map_noise.freqs"] = (z // 2,)
        if given["label_dim"]:
            self.affine("map_label", z if self.song else e, given["label_dim"], bias=self.song)
        if given["augment_dim"]:
            self.affine("map_augment", z, given["augment_dim"], bias=False)
        self.affine("map_layer0", e, z)
        self.affine("map_layer1", e, e)

    def encoder(self) -> None:
        given, resolution = self.given, self.given["img_resolution"]
        self.affine(f"enc.{resolution}x{resolution}_conv", self.channels, given["img_channels"], 3, 3)
        self.skips.append(self.channels)
        c_aux = given["img_channels"]
        for level, width in enumerate(self.widths):
            size = resolution >> level
            if level:
                self.block(f"enc.{size}x{size}_down", self.channels, self.channels, resampled=True)
                if given.get("encoder_type") == "residual":
                    self.affine(f"enc.{size}x{size}_aux_residual", self.channels, c_aux, 3, 3)
                    self.resample_filter(f"enc.{size}x{size}_aux_residual")
                    c_aux = self.channels
                self.skips.append(self.channels)
            for i in range(given["num_blocks"]):
                self.block(f"enc.{size}x{size}_block{i}", self.channels, width, size in given["attn_resolutions"])
                self.skips.append(self.channels)

    def decoder(self) -> None:
        given, n = self.given, self.given["num_blocks"]
        for level in reversed(range(len(self.widths))):
            size, width = given["img_resolution"] >> level, self.widths[level]
            if level == len(self.widths) - 1:
                self.block(f"dec.{size}x{size}_in0", self.channels, self.channels, attention=True)
                self.block(f"dec.{size}x{size}_in1", self.channels, self.channels)
            else:
                self.block(f"dec.{size}x{size}_up", self.channels, self.channels, resampled=True)
            for i in range(n + 1):
                attention = size in given["attn_resolutions"] and (i == n or not self.song)
                self.block(f"dec.{size}x{size}_block{i}", self.channels + self.skips.pop(), width, attention)

    def output(self, channels: int) -> None:
        """What makes an image of `channels` channels."""
        prefix = "dec.{0}x{0}_aux".format(self.given["img_resolution"]) if self.song else "out"
        self.affine(f"{prefix}_norm", self.channels)
        self.affine(f"{prefix}_conv", channels, self.channels, 3, 3)


def improved_diffusion_shapes(
    channels: int, channel_mult: list[int], num_res_blocks: int, attention: list[bool]
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network of improved-diffusion without classes, with a learned variance, for RGB images.

    Args:
        channels: OpenAI's `num_channels`.
        channel_mult: Width of each level, from the highest resolution down, in multiples of `channels`.
        num_res_blocks: Residual blocks at each level of the encoder.
        attention: Whether a level has attention.
    """
    levels = [(channels * multiple, attended) for multiple, attended in zip(channel_mult, attention, strict=True)]
    network = ImprovedDiffusionShapes(channels, levels, num_res_blocks)
    network.affine("time_embed.0", 4 * channels, channels)
    network.affine("time_embed.2", 4 * channels, 4 * channels)
    network.encoder()
    network.middle()
    network.decoder()
    network.affine("out.0", network.channels)
    network.affine("out.2", 6, network.channels, 3, 3)
    return network.shapes


class ImprovedDiffusionShapes:
    """A network of improved-diffusion, part by part: each method adds the names and shapes of one.

    Args:
        channels: OpenAI's `num_channels`.
        levels: Width of each level, and whether it has attention.
        num_res_blocks: Residual blocks at each level of the encoder.

    The attribute `shapes` has what was added so far.
    """

    def __init__(self, channels: int, levels: list[tuple[int, bool]], num_res_blocks: int):
        self.levels, self.num_res_blocks = levels, num_res_blocks
        self.embedded = 4 * channels
        self.channels = levels[0][0]
        self.skips: list[int] = []
        self.shapes: dict[str, tuple[int, ...]] = {}

    def affine(self, name: str, *shape: int) -> None:
        self.shapes[f"{name}.weight"], self.shapes[f"{name}.bias"] = shape, shape[:1]

    def resnet(self, name: str, c_in: int, c: int) -> None:
        """A residual block from `c_in` to `c` channels, after which there are `c`."""
        self.affine(f"{name}.in_layers.0", c_in)
        self.affine(f"{name}.in_layers.2", c, c_in, 3, 3)
        self.affine(f"{name}.emb_layers.1", 2 * c, self.embedded)
        self.affine(f"{name}.out_layers.0", c)
        self.affine(f"{name}.out_layers.3", c, c, 3, 3)
        if c_in != c:
            self.affine(f"{name}.skip_connection", c, c_in, 1, 1)
        self.channels = c

    def attend(self, name: str) -> None:
        self.affine(f"{name}.norm", self.channels)
        self.affine(f"{name}.qkv", 3 * self.channels, self.channels, 1)
        self.affine(f"{name}.proj_out", self.channels, self.channels, 1)

    def encoder(self) -> None:
        self.affine("input_blocks.0.0", self.channels, 3, 3, 3)
        self.skips.append(self.channels)
        for level, (width, attended) in enumerate(self.levels):
            for _ in range(self.num_res_blocks):
                name = f"input_blocks.{len(self.skips)}"
                self.resnet(f"{name}.0", self.channels, width)
                if attended:
                    self.attend(f"{name}.1")
                self.skips.append(self.channels)
            if level < len(self.levels) - 1:
                self.affine(f"input_blocks.{len(self.skips)}.0.op", self.channels, self.channels, 3, 3)
                self.skips.append(self.channels)

    def middle(self) -> None:
        self.resnet("middle_block.0", self.channels, self.channels)
        self.attend("middle_block.1")
        self.resnet("middle_block.2", self.channels, self.channels)

    def decoder(self) -> None:
        total = len(self.skips)
        for level, (width, attended) in reversed(list(enumerate(self.levels))):
            for block in range(self.num_res_blocks + 1):
                name = f"output_blocks.{total - len(self.skips)}"
                self.resnet(f"{name}.0", self.channels + self.skips.pop(), width)
                if attended:
                    self.attend(f"{name}.1")
                if level and block == self.num_res_blocks:
                    self.affine(f"{name}.{2 if attended else 1}.conv", self.channels, self.channels, 3, 3)


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """Weights with which a network neither fades nor explodes: norms and filters that change nothing, small biases."""
    generator, weights = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        if name.endswith("resample_filter"):
            weights[name] = torch.full(shape, 1 / math.prod(shape))
        elif name.endswith("weight") and len(shape) == 1:
            weights[name] = torch.ones(shape)
        elif name.endswith("bias"):
            weights[name] = 0.1 * torch.randn(shape, generator=generator)
        else:
            weights[name] = torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
    return weights
