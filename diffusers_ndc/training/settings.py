"""Settings of a training. `settings_parser` reads them from a command line and a YAML file. Free of torch."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..common.checks import check_seed
from ..common.options import option, required
from ..common.places import check_place


DEFAULT_UNET = {
    "block_out_channels": [64, 128, 256],
    "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
}
"""Arguments of a `UNet2DModel` if none are given."""


MAY_CHANGE = {"dataset", "output_dir", "resume"}
MAY_CHANGE |= {"max_train_steps", "checkpointing_steps", "mixed_precision", "num_workers"}
"""Settings that may be others when a training is resumed: places, how long it goes on, and how it computes."""

RECORD = "training.json"
"""File in the folder with the other settings."""

DECIDED_BY_DATA = {"sample_size", "in_channels", "out_channels", "num_class_embeds"}
"""Arguments of it that are not to be given."""


@dataclass
class TrainingSettings:
    """Settings of one training. The help of each field says what it is, and in which unit."""

    dataset: str = required("Hub id or local folder of a data set with an image and a label column.")
    output_dir: str = required("Folder for the model, and its checkpoints until then.")
    split: str = option("train", "Split of the data set.")
    image_column: str | None = option(None, "Column with the images. Default: the first with images.")
    label_column: str | None = option(None, "Column with the classes. Default: the first with class labels.")
    resolution: list[int] | None = option(
        None, "Pixels: side of the images, or height and width. Default: the shorter side of the first image."
    )
    unet_config: str | dict[str, Any] | None = option(
        None,
        "JSON, or a JSON file, of `UNet2DModel` arguments; sizes and classes come from the data. Default: three "
        "stages with 64, 128 and 256 channels, the last with attention.",
    )
    objective: Literal["edm", "ddpm"] = option("edm", "What is trained: edm (Karras et al. 2022) or ddpm.")
    p_mean: float = option(-1.2, "edm: mean of log sigma in training (model units).")
    p_std: float = option(1.2, "edm: standard deviation of log sigma in training.")
    sigma_data: float = option(0.5, "edm: root mean square of the images (model units).")
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = option(
        "epsilon", "ddpm: what the network predicts."
    )
    label_dropout: float = option(0.1, "Share of images trained without a class; 0: no null class.")
    flip: bool = option(False, "Augment by mirroring.")
    rotate: float = option(0.0, "Augment by rotations of up to this angle, degrees.")
    zoom: float = option(0.0, "Augment by zooms of up to this factor, 0.1 for a tenth.")
    shift: float = option(0.0, "Augment by shifts of up to this number of pixels.")
    batch_size: int = option(128, "Images per step and process.")
    max_train_steps: int = option(10_000, "Steps of the whole training.")
    learning_rate: float = option(1e-3, "Learning rate after the warm-up; it falls to 0 as a cosine.")
    lr_warmup_steps: int = option(200, "Steps in which the learning rate grows from 0.")
    weight_decay: float = option(0.01, "Weight decay of AdamW.")
    ema_decay: float = option(0.999, "Decay of the moving average of the weights, which is what is saved.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(
        None, "Precision of the network. Default: the setting of accelerate launch."
    )
    checkpointing_steps: int = option(1000, "Steps between two checkpoints; the last two are kept.")
    resume: bool = option(
        False,
        "Continue from the newest checkpoint in --output-dir, with the same settings; the number of steps may be "
        "larger.",
    )
    seed: int = option(0, "Seed of weights, order of the images, and noise.")
    num_workers: int = option(0, "Processes that decode images.")

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return Path(self.output_dir, "checkpoints")

    @property
    def unet_arguments(self) -> dict[str, Any]:
        """The arguments of the `UNet2DModel`, without those that the data decides.

        Raises:
            ValueError: `unet_config` is not JSON, or not one of keys and values.
        """
        given = self.unet_config
        if given is None:
            return DEFAULT_UNET
        if isinstance(given, dict):
            return given
        try:
            text = Path(given).read_text(encoding="utf-8") if given.endswith(".json") else given
            arguments = json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"`--unet-config` must be JSON or a JSON file, got {given}: {error}") from error
        if not isinstance(arguments, dict):
            raise ValueError(f"`--unet-config` must be keys and values in JSON, got {given}.")
        return arguments

    def record(self) -> None:
        """Write to the folder what may not change when the training is resumed.

        Raises:
            OSError: The folder cannot be written.
        """
        Path(self.output_dir).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self._lasting(), indent=2)
        Path(self.output_dir, RECORD).write_text(f"{text}\n", encoding="utf-8")

    def _lasting(self) -> dict[str, Any]:
        """The settings that may not change, as plain values of JSON."""
        values = {name: value for name, value in asdict(self).items() if name not in MAY_CHANGE}
        return json.loads(json.dumps({**values, "unet_config": self.unet_arguments}))

    def check(self) -> None:
        """Raise if a setting would make the training fail later, as far as this is known before anything is loaded.

        Raises:
            TypeError, ValueError: A setting is out of its range, or does not go with the folder.
        """
        check_place("--dataset", self.dataset)
        self._check_folder()
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"`--label-dropout` must be at least 0 and below 1, got {self.label_dropout}.")
        if self.resolution is not None and (len(self.resolution) not in (1, 2) or min(self.resolution) < 1):
            raise ValueError(f"`--resolution` must be one or two numbers of pixels, got {self.resolution}.")
        self._check_numbers()
        check_seed(self.seed)
        decided = DECIDED_BY_DATA & set(self.unet_arguments)
        if decided:
            raise ValueError(f"`--unet-config` must leave out {sorted(decided)}, which come from the data, got them.")
        if self.resume:
            self._check_resumed()

    def _check_numbers(self) -> None:
        """Raise a `ValueError` unless each number is in its range."""
        leasts = {"batch_size": 1, "max_train_steps": 1, "checkpointing_steps": 1, "lr_warmup_steps": 0}
        for name, least in {**leasts, "num_workers": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"`--{name.replace('_', '-')}` must be at least {least}, got {getattr(self, name)}.")
        for name in ("learning_rate", "p_std", "sigma_data"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"`--{name.replace('_', '-')}` must be a number above 0, got {getattr(self, name)}.")
        for name in ("weight_decay", "rotate", "zoom", "shift"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"`--{name.replace('_', '-')}` must be a number of at least 0, got {getattr(self, name)}."
                )
        if not math.isfinite(self.p_mean):
            raise ValueError(f"`--p-mean` must be a finite number, got {self.p_mean}.")
        if not 0 <= self.ema_decay <= 1:
            raise ValueError(f"`--ema-decay` must be a number from 0 to 1, got {self.ema_decay}.")

    def _check_folder(self) -> None:
        """Raise a `ValueError` unless there are checkpoints if and only if they are to be resumed."""
        has_checkpoint = self.checkpoints.is_dir() and any(self.checkpoints.iterdir())
        if self.resume and not has_checkpoint:
            raise ValueError(
                f"`--resume` must be given with a folder that has a checkpoint, got none in {self.checkpoints}."
            )
        if has_checkpoint and not self.resume:
            raise ValueError(
                f"`--output-dir` must hold no checkpoints for a new run, got {self.output_dir}. Give `--resume` to "
                "continue from them, or another folder."
            )

    def _check_resumed(self) -> None:
        """Raise a `ValueError` if the training in the folder has other settings, as far as they are recorded there."""
        path = Path(self.output_dir, RECORD)
        if not path.exists():
            return
        try:
            begun = dict(json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(f"`--output-dir` must have settings in {RECORD}, got {path}: {error}") from error
        for name, value in self._lasting().items():
            if name in begun and begun[name] != value:
                raise ValueError(
                    f"`--{name.replace('_', '-')}` must be {begun[name]}, with which the training in "
                    f"{self.output_dir} was begun, got {value}."
                )
