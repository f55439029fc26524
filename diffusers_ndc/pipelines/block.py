"""A classifier pipeline as a block of Modular Diffusers: the same components and inputs, and the same certificates."""

import math
from inspect import Parameter, signature

import PIL.Image
import torch
from diffusers import ModularPipeline, ModularPipelineBlocks
from diffusers.modular_pipelines import ComponentSpec, ConfigSpec, InputParam, OutputParam, PipelineState

from ..certification.certificate import Certificate
from .inputs import Images, one_of
from .pictures import captioned
from .planning import PlanningPipeline


INPUTS = {
    "sigma": "Standard deviation of the smoothing noise, pixel units; 0: classify without certificates.",
    "n0": "Number of noisy copies that choose the candidate class.",
    "n": "Number of further noisy copies that bound its probability; with a way to stop early, the largest number.",
    "alpha": "Probability with which a certificate may be wrong.",
    "radii": "An image is finished as soon as each of these l2 radii (pixel units) is proved or given up.",
    "resolution": "An image is finished when further copies would hardly raise its radius by more (pixel units).",
    "max_copies_per_radius": "A radius is given up that would cost more noisy copies, in expectation.",
    "max_evaluations": "Network evaluations for each image.",
    "bound": "Name of the bound on the class's probability.",
    "grid": "Steps of the noise's grid between two values of an 8-bit image.",
    "method": "Name of the likelihood.",
    "sift": "What the class sifter does: 'candidates', 'scores' or False.",
    "batch_size": "(image, class, level) triples per network evaluation.",
    "seed": "Seed of the noise.",
    "generator": "Source of the seed, instead of `seed`.",
}
"""Inputs by name: arguments of `certify`, with its types and defaults."""

CLASSIFYING = ("sigma", "method", "batch_size", "seed", "generator", "sift")
"""Those of the inputs that count without certificates (`sigma=0`)."""


class ClassifierBlock(ModularPipelineBlocks):
    """Classify images and certify the answers: `certify` of a classifier pipeline as a block of Modular Diffusers.

    It has the components and config values of `pipeline_class`, calls that pipeline, and does nothing else: its
    certificates are those of `pipe.certify`. `pipe.save_modular` writes a folder with such a block.

    Example:
        >>> from diffusers import ModularPipeline
        >>> blocks = ModularPipeline.from_pretrained("path/to/saved", trust_remote_code=True)  # doctest: +SKIP
        >>> blocks.load_components()  # doctest: +SKIP
        >>> (certificate,) = blocks(image=image, sigma=0.25, output="certificates")  # doctest: +SKIP
    """

    pipeline_class: type[PlanningPipeline]

    @property
    def description(self) -> str:
        return "Classifies images with a diffusion model, and certifies the answers by randomized smoothing."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec(name=name, subfolder=name) for name in component_names(self.pipeline_class)]

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        return [ConfigSpec(name=name, default=None) for name in config_names(self.pipeline_class)]

    @property
    def inputs(self) -> list[InputParam]:
        image = "Clean images: a PIL image, a numpy array, a tensor, or a list of them; values in [0, 1], or uint8."
        params = [
            InputParam(name="image", type_hint=Images, description=image),
            InputParam(name="images", type_hint=Images, description="The same as `image`. Give one of the two."),
        ]
        arguments = signature(self.pipeline_class.certify).parameters
        for name, description in INPUTS.items():
            kind, default = arguments[name].annotation, arguments[name].default
            params.append(InputParam(name=name, type_hint=kind, default=default, description=description))
        return params

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [
            OutputParam(
                name="predictions",
                type_hint=list[int | None],
                description="Class index for each image; None where the smoothed classifier abstains.",
            ),
            OutputParam(
                name="certificates",
                type_hint=list[Certificate],
                description="A certificate for each image, with radius (pixel units) and votes; none for sigma 0.",
            ),
            OutputParam(
                name="pictures",
                type_hint=list[PIL.Image.Image],
                description="The images as the network sees them, with class and certified radius below.",
            ),
        ]

    @torch.no_grad()
    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[ModularPipeline, PipelineState]:
        """Classify or certify the images of `state`, and add `predictions`, `certificates` and `pictures` to it.

        Raises:
            TypeError, ValueError: An input is not as described, or beyond what the model was trained for; or a
                component is not loaded.
            FloatingPointError: A loss is not finite, for example after an overflow in half precision.
        """
        block_state = self.get_block_state(state)
        pipe = self._pipeline(components)
        images = one_of(block_state.images, block_state.image)
        arguments = {name: getattr(block_state, name) for name in INPUTS}
        if block_state.sigma == 0:
            labels, _, _ = pipe(images, **{name: arguments[name] for name in CLASSIFYING}, return_dict=False)
            block_state.predictions = labels
            block_state.certificates = []
        else:
            certificates = pipe.certify(images, **arguments)
            block_state.certificates = certificates if isinstance(certificates, list) else [certificates]
            block_state.predictions = [certificate.label for certificate in block_state.certificates]
        classifier = pipe.classifier(block_state.sigma, block_state.method, batch_size=block_state.batch_size)
        batch, _ = pipe._preprocess(images, classifier)
        texts = [_text(label, pipe.config.id2label) for label in block_state.predictions]
        for index, certificate in enumerate(block_state.certificates):
            if certificate.label is not None:
                radius = math.floor(certificate.radius * 1000) / 1000  # rounded up, it would not be proved
                texts[index] += f", l2 radius {radius:.3f}"
        block_state.pictures = [captioned(image, text) for image, text in zip(batch, texts, strict=True)]
        self.set_block_state(state, block_state)
        return components, state

    def _pipeline(self, components: ModularPipeline) -> PlanningPipeline:
        """The pipeline of the current components."""
        parts = {name: getattr(components, name, None) for name in component_names(self.pipeline_class)}
        needed = [name for name in parts if name not in self.pipeline_class._optional_components]
        missing = [name for name in needed if parts[name] is None]
        if missing:
            raise ValueError(f"Components must be loaded (call `load_components()`), got none for {missing}.")
        values = {name: components.config[name] for name in config_names(self.pipeline_class)}
        return self.pipeline_class(**parts, **values)


def _text(label: int | None, id2label: dict[int, str] | None) -> str:
    """What a picture says of a prediction."""
    if label is None:
        return "no certified class"
    return str(label) if id2label is None else id2label[label]


def component_names(pipeline_class: type[PlanningPipeline]) -> list[str]:
    """Names of a pipeline's components, in the order of its constructor's arguments."""
    optional = pipeline_class._optional_components
    parameters = signature(pipeline_class).parameters.values()
    return [each.name for each in parameters if each.default is Parameter.empty or each.name in optional]


def config_names(pipeline_class: type[PlanningPipeline]) -> list[str]:
    """Names of a pipeline's config values, in the order of its constructor's arguments."""
    components = component_names(pipeline_class)
    return [name for name in signature(pipeline_class).parameters if name not in components]
