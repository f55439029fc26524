"""What a recipe states: the published files, the images, the settings, and the figures to compare with."""

from dataclasses import dataclass, field
from typing import Any


IMPROVED_DIFFUSION = {
    "num_heads": 4,
    "use_new_attention_order": False,
    "noise_schedule": "cosine",
    "diffusion_steps": 4000,
    "rescale_timesteps": True,
    "predict_xstart": False,
}
"""How the published networks of improved-diffusion for small images without classes were trained."""


@dataclass(frozen=True)
class Recipe:
    """The facts of a recipe.

    Args:
        name: Name of the recipe.
        conditional: Address of the class-conditional checkpoint, of EDM.
        unconditional: Address of the checkpoint without classes, of EDM or of OpenAI.
        image_size: Height and width of the images, in pixels.
        task: The evaluation task: data set, images, number of noisy copies, radii, and sigmas. Each sigma has a run of
            its own.
        published: Published certified accuracies by l2 radius (pixel units), as text.
        source: Where these figures are from, how they were obtained, and how this recipe differs.
        class_names: Names of the classes, in the order of the network. Default: their numbers.
        unconditional_arguments: How an unconditional network of OpenAI was trained.
        per_class: Training images of each class to calibrate on, the first ones. 0: nothing is calibrated.
        train_split: Split of the data set with the training images.
        calibration: More arguments of `pipe.calibrate`.
        evaluation: More settings of the evaluation, as `examples/evaluate.py` takes them.
        classifier: Hub id of the image classifier behind the denoiser, for diffusion denoised smoothing.
    """

    name: str
    conditional: str
    unconditional: str
    image_size: int
    task: str
    published: dict[float, str]
    source: str
    class_names: tuple[str, ...] | None = None
    unconditional_arguments: dict[str, Any] | None = None
    per_class: int = 0
    train_split: str = "train"
    calibration: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    classifier: str | None = None
