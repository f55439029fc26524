"""How pipelines are saved for Modular Diffusers and for `diffusers-cli`."""

import json
from pathlib import Path

from huggingface_hub import HfApi

from ..common.markdown import fill
from .block import ClassifierBlock, component_names, config_names
from .model_card import add_metadata, guarantee, markers, read_card, with_section, write_card
from .planning import PlanningPipeline
from .saving import COMPONENT_CLASSES, public_room


BLOCK_FILE = '''"""Classify images and certify the answers: a block of Modular Diffusers."""

try:
    from diffusers_ndc import ClassifierBlock, {pipeline}
except ImportError as error:
    raise ImportError(
        "This model needs the package diffusers-ndc: pip install git+https://github.com/diffusers-ndc/diffusers-ndc"
    ) from error


class {block}(ClassifierBlock):
    pipeline_class = {pipeline}
'''


class ModularSavingPipeline(PlanningPipeline):
    """A classifier pipeline that can be saved as a block of Modular Diffusers."""

    def save_modular(
        self,
        save_directory: str | Path,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
    ) -> None:
        """Save the model as a block of Modular Diffusers, which `diffusers-cli schema` and `run` can read too.

        The folder gets `block.py`, `modular_config.json`, `modular_model_index.json` and the components.
        `ModularPipeline.from_pretrained(folder, trust_remote_code=True)` loads it, and its inputs and certificates are
        those of `certify` (see `ClassifierBlock`).

        It may be the folder, or repository, of the saved pipeline: every way of loading in Python then works on it.
        `diffusers-cli` wants a folder of its own: it reads a `model_index.json` first, and only knows the pipelines of
        diffusers there. As `diffusers-cli run` saves nothing but images, videos and sound, ask it for
        `--output-key pictures`.

        Args:
            save_directory: The folder; it is created if necessary.
            push_to_hub: Whether to upload the folder to the Hub, with a section on its use in the model card.
            repo_id: The repository that the folder is for, `namespace/name`: the components are loaded from there.
                Default: the folder; with `push_to_hub`, a repository of the folder's name.
            private: Whether a new repository is private.
            token: The Hub's token. Default: the one of `hf auth login`.

        Raises:
            NotADirectoryError: `save_directory` is a file.
            OSError: The folder cannot be written, or the push failed.

        Example:
            >>> pipe.save_modular("mnist-modular")  # doctest: +SKIP
            >>> pipe.save_modular("mnist-modular", push_to_hub=True, repo_id="me/mnist-modular")  # doctest: +SKIP
        """
        folder = Path(save_directory)
        if folder.is_file():
            raise NotADirectoryError(f"`save_directory` must be a folder, got the file {folder}.")
        if not push_to_hub:
            self._write_modular(folder, repo_id or str(folder))
            return
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id or folder.resolve().name, private=private, exist_ok=True).repo_id
        self._write_modular(folder, repo_id)
        self._write_modular_card(folder, repo_id, api)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=f"Upload {self._block_name()}")

    def _block_name(self) -> str:
        return type(self).__name__.replace("Pipeline", "Block")

    def _write_modular(self, folder: Path, location: str) -> None:
        """Write the folder, whose index says that the components are in `location`, a folder or a repository."""
        pipeline_class = type(self)
        name = self._block_name()
        block = type(name, (ClassifierBlock,), {"pipeline_class": pipeline_class})()
        modular = block.init_pipeline()
        parts = {part: getattr(self, part) for part in component_names(pipeline_class)}
        values = {value: self.config[value] for value in config_names(pipeline_class)}
        modular.update_components(**{part: component for part, component in parts.items() if component is not None})
        modular.update_components(**values)
        modular.save_pretrained(str(folder), overwrite_modular_index=True)
        index = folder / modular.config_name
        config = json.loads(index.read_text())
        for part, component in parts.items():
            if component is None:  # a folder of this name may be there from another model
                del config[part]
                continue
            specification = config[part][2]
            specification["pretrained_model_name_or_path"] = location
            class_name = specification["type_hint"][1]
            if class_name in COMPONENT_CLASSES:
                room = public_room(COMPONENT_CLASSES[class_name])
                specification["type_hint"] = [room, class_name]
                config[part] = [room, class_name, specification]
        index.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        block.register_to_config(auto_map={"ModularPipelineBlocks": f"block.{name}"})
        block.save_config(folder)
        (folder / "block.py").write_text(BLOCK_FILE.format(pipeline=pipeline_class.__name__, block=name))

    def _write_modular_card(self, folder: Path, repo_id: str, api: HfApi) -> None:
        """Write the repository's card to the folder, with a section on how to use the block."""
        card = folder / "README.md"
        if api.file_exists(repo_id, "README.md"):
            card.write_bytes(Path(api.hf_hub_download(repo_id, "README.md")).read_bytes())
        metadata, text = read_card(card, repo_id.rpartition("/")[2])
        add_metadata(metadata, tags=["modular-diffusers"])
        noisy = [sigma for sigma, *_ in self._all_levels() if sigma > 0]
        explained = "" if markers("model")[0] in text else guarantee()
        section = fill(
            __package__,
            "modular",
            model=json.dumps(repo_id),
            sigma=min(noisy, default=0.25),
            guarantee=explained,
        )
        write_card(card, metadata, with_section(text, "modular", section))
