"""How pipelines of ours are saved and found again: by their own class, and by the plain `DiffusionPipeline`.

diffusers loads a class that it does not have from a Python file in the saved folder, if its user trusts that. So
beside the weights lie files of one import each: `pipeline.py` for the pipeline, and one with each network or scheduler
that is a class of this package. Our own pipeline class needs neither files nor trust: it reads the names back.
"""

import json
from inspect import signature
from pathlib import Path

from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
from huggingface_hub import HfApi

from ..checkpoints import EDMUNet2DModel, IDDPMPrecondScheduler, VEPrecondScheduler, VPPrecondScheduler
from ..diffusion.noise_levels import NoiseLevels
from .model_card import add_metadata, certifying, model_section, read_card, with_section, write_card


COMPONENT_CLASSES = {
    component.__name__: component.__module__
    for component in (EDMUNet2DModel, IDDPMPrecondScheduler, VEPrecondScheduler, VPPrecondScheduler)
}
"""Networks and schedulers that diffusers does not have, and their modules."""

COMPONENT_FILE = "diffusers_ndc_component"

IMPORT_FILE = """try:
    from {module} import {name}  # noqa: F401
except ImportError as error:
    raise ImportError("This model needs the package diffusers-ndc: pip install diffusers-ndc") from error
"""

# Without an entry here, a repository of the Hub whose index names one of these modules is refused.
for _module in COMPONENT_CLASSES.values():
    LOADABLE_CLASSES[_module] = {
        name: ["save_pretrained", "from_pretrained"] for name in ("ModelMixin", "SchedulerMixin")
    }


class SharedPipeline(DiffusionPipeline):
    """A pipeline of this package whose saved folder every way of loading understands."""

    def save_config(self, save_directory, **kwargs):
        """Write `model_index.json` with class names for every loader, and the files that they point to."""
        super().save_config(save_directory, **kwargs)
        index = Path(save_directory, self.config_name)
        config = json.loads(index.read_text())
        config["_class_name"] = ["pipeline", type(self).__name__]
        config.pop("_name_or_path", None)  # the place that it was loaded from means nothing to others
        files = {"pipeline.py": ("diffusers_ndc", type(self).__name__)}
        for component, value in config.items():
            if isinstance(value, list) and value[1] in COMPONENT_CLASSES:
                files[f"{component}/{COMPONENT_FILE}.py"] = tuple(value)
                config[component] = [COMPONENT_FILE, value[1]]
        index.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        for file, (module, name) in files.items():
            Path(save_directory, file).parent.mkdir(exist_ok=True)
            Path(save_directory, file).write_text(IMPORT_FILE.format(module=module, name=name))

    def _upload_folder(self, working_dir, repo_id, token=None, commit_message=None, create_pr=False, subfolder=None):
        # all ways of pushing end here, with the repository's card in the folder, or one that says nothing
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
        """Lines for the model card that use `pipe` on `image`: with a noise that the model has levels for."""
        sigma, method = min(((s, m) for s, m, _ in self._all_levels() if s > 0), default=(0.25, "apndc"))
        return certifying(sigma, sigma, method)

    def _all_levels(self) -> list[tuple[float, str, NoiseLevels]]:
        """The noise levels that were calibrated, with their smoothing noise and method."""
        found = []
        for key, methods in (self.config.levels or {}).items():
            for method, saved in methods.items():
                levels = NoiseLevels.from_dict(saved)
                sigma = float(key) if levels.smoothing_sigma is None else levels.smoothing_sigma
                found.append((sigma, method, levels))
        return found

    @classmethod
    def _dict_from_json_file(cls, *args, **kwargs):
        # For the named class the files of the repository are not remote code to be trusted: they are this package.
        config = super()._dict_from_json_file(*args, **kwargs)
        if "vae" in config and "vae" not in signature(cls.__init__).parameters:
            raise ValueError(
                f"This model has a `vae`: its network denoises latents, not images. Accepted by {cls.__name__} are "
                "models in pixel space; this one is for LatentDiffusionClassifierPipeline."
            )
        if isinstance(config.get("_class_name"), list):
            config["_class_name"] = config["_class_name"][-1]
        for component, value in config.items():
            if isinstance(value, list) and value[:1] == [COMPONENT_FILE] and value[-1] in COMPONENT_CLASSES:
                config[component] = [COMPONENT_CLASSES[value[-1]], value[-1]]
        return config
