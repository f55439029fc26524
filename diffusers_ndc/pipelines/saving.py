"""How pipelines are saved and found again: by their own class, and by the plain `DiffusionPipeline`.

diffusers loads a class that it does not have from a Python file in the saved folder, if the user trusts that file. So
the folder holds, beside the weights, files of one import each: `pipeline.py` for the pipeline, and one for each
network or scheduler whose class belongs to this package. Our own pipeline classes need neither these files nor the
user's trust: they read the names back.
"""

import json
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory

from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
from huggingface_hub import HfApi

from ..checkpoints import (
    EDMUNet2DModel,
    IDDPMPrecondScheduler,
    OpenAIUNet2DModel,
    VEPrecondScheduler,
    VPPrecondScheduler,
)
from ..diffusion.class_sifter import ClassSifter
from ..diffusion.noise_levels import NoiseLevels
from .model_card import add_metadata, certifying, model_section, read_card, with_section, write_card


COMPONENT_CLASSES = {
    component.__name__: component
    for component in (
        ClassSifter,
        EDMUNet2DModel,
        IDDPMPrecondScheduler,
        OpenAIUNet2DModel,
        VEPrecondScheduler,
        VPPrecondScheduler,
    )
}
"""Networks and schedulers that diffusers does not have, by name."""


def public_room(component: type) -> str:
    """Public module from which saved folders import a component's class, so that the file behind it can move."""
    return component.__module__.rpartition(".")[0]


COMPONENT_FILE = "diffusers_ndc_component"
"""Name of the Python file (without `.py`) beside the weights of such a component."""

IMPORT_FILE = """try:
    from {module} import {name}  # noqa: F401
except ImportError as error:
    raise ImportError(
        "This model needs the package diffusers-ndc: pip install git+https://github.com/diffusers-ndc/diffusers-ndc"
    ) from error
"""

# diffusers refuses a repository of the Hub whose index names a module without an entry here. It looks for these base
# classes in the module itself, which is why the modules that define the components are named, not `public_room`.
for _component in COMPONENT_CLASSES.values():
    LOADABLE_CLASSES[_component.__module__] = {
        name: ["save_pretrained", "from_pretrained"] for name in ("ModelMixin", "SchedulerMixin")
    }


class SharedPipeline(DiffusionPipeline):
    """A pipeline whose saved folder every way of loading understands."""

    sifter: ClassSifter | None

    def save_config(self, save_directory, **kwargs):
        """Write `model_index.json` with class names for every way of loading, and the files that these names mean."""
        super().save_config(save_directory, **kwargs)
        index = Path(save_directory, self.config_name)
        config = json.loads(index.read_text())
        # With a plain string, `DiffusionPipeline` would look for the class in diffusers. `diffusers-cli schema` knows
        # no others either, and reads no list: `save_modular` writes what it can read.
        config["_class_name"] = ["pipeline", type(self).__name__]
        config.pop("_name_or_path", None)  # the place that it was loaded from means nothing to others
        files = {"pipeline.py": ("diffusers_ndc", type(self).__name__)}
        for component, value in config.items():
            if isinstance(value, list) and value[1] in COMPONENT_CLASSES:
                files[f"{component}/{COMPONENT_FILE}.py"] = (public_room(COMPONENT_CLASSES[value[1]]), value[1])
                config[component] = [COMPONENT_FILE, value[1]]
        index.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        for file, (module, name) in files.items():
            path = Path(save_directory, file)
            path.parent.mkdir(exist_ok=True)
            path.write_text(IMPORT_FILE.format(module=module, name=name))

    def save_calibration(self, save_directory: str | Path) -> None:
        """Write what `calibrate` changes into the folder of this saved pipeline: `model_index.json` and the sifter.

        All is written elsewhere first, then the folder of the sifter and the index are swapped, the index being away
        meanwhile. So a kill leaves at worst a folder without an index, which nothing loads, never a mixture of two
        calibrations.

        Args:
            save_directory: The folder. The networks in it are left alone.

        Raises:
            FileNotFoundError: There is no saved pipeline in it.

        Example:
            >>> pipe.calibrate(images, labels, sigma=0.25)  # doctest: +SKIP
            >>> pipe.save_calibration("model")  # doctest: +SKIP
        """
        index = Path(save_directory, self.config_name)
        if not index.is_file():
            raise FileNotFoundError(f"`save_directory` must be the folder of a saved pipeline, got {save_directory}.")
        with TemporaryDirectory(dir=save_directory, prefix=".calibration-") as written:
            new, old = Path(written, "new"), Path(written, "old")
            if self.sifter is not None:
                self.sifter.save_pretrained(new / "sifter")
            self.save_config(new)
            old.mkdir()
            for part in ("sifter", self.config_name):
                if Path(save_directory, part).exists():
                    Path(save_directory, part).rename(old / part)
            for part in ("sifter", self.config_name):
                if (new / part).exists():
                    (new / part).rename(Path(save_directory, part))

    def _upload_folder(self, working_dir, repo_id, token=None, commit_message=None, create_pr=False, subfolder=None):
        # All ways of pushing end here. By now the folder holds the repository's card, or a generic one that diffusers
        # made because the repository has none.
        if not subfolder:
            card = Path(working_dir, "README.md")
            if not HfApi(token=token).file_exists(repo_id, "README.md"):
                card.unlink(missing_ok=True)
            metadata, text = read_card(card, repo_id.rpartition("/")[2])
            add_metadata(metadata)
            section = model_section(repo_id, self._usage(), self._all_levels(), "vae" in self.components)
            write_card(card, metadata, with_section(text, "model", section))
        return super()._upload_folder(working_dir, repo_id, token, commit_message, create_pr, subfolder)

    def _usage(self) -> list[str]:
        """Lines of code for the model card that use `pipe` on `image`, with a noise that the model has levels for."""
        noisy = [(sigma, method) for sigma, method, *_ in self._all_levels() if sigma > 0]
        sigma, method = min(noisy, default=(0.25, "apndc"))
        return certifying(sigma, sigma, method)

    def _all_levels(self) -> list[tuple[float, str, NoiseLevels, bool]]:
        """Calibrated noise levels, each with smoothing noise (pixel units), method, and whether there is a sift."""
        table = []
        for key, methods in (self.config.levels or {}).items():
            for method, saved in methods.items():
                levels = NoiseLevels.from_dict(saved)
                sigma = float(key) if levels.smoothing_sigma is None else levels.smoothing_sigma
                sifted = self.sifter is not None and self.sifter.find(sigma, method) is not None
                table.append((sigma, method, levels, sifted))
        return table

    @classmethod
    def _dict_from_json_file(cls, *args, **kwargs):
        # A private hook of diffusers. For our own classes the files of the repository are not remote code that the
        # user must trust: they only name this package.
        config = super()._dict_from_json_file(*args, **kwargs)
        if "vae" in config and "vae" not in signature(cls.__init__).parameters:
            raise ValueError(
                f"The model of a `{cls.__name__}` must denoise pixels, got one with a `vae`: its network denoises "
                "latents. Load it with LatentDiffusionClassifierPipeline."
            )
        if isinstance(config.get("_class_name"), list):
            config["_class_name"] = config["_class_name"][-1]
        for component, value in config.items():
            if isinstance(value, list) and value[:1] == [COMPONENT_FILE] and value[-1] in COMPONENT_CLASSES:
                name = value[-1]
                config[component] = [COMPONENT_CLASSES[name].__module__, name]
        return config
