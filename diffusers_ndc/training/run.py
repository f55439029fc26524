"""A training: steps on the images of a data set, with checkpoints, and the classifier that is saved at the end."""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from ..diffusion.denoiser import Denoiser
from ..diffusion.thread_trial import choose_threads_for
from ..pipelines.pixel import NoisedDiffusionClassifierPipeline
from .checkpoints import next_number, remove_torn, whole_checkpoints
from .images import TrainingImages, augment, load_images
from .objective import build_denoiser, draw_noise_levels
from .settings import TrainingSettings


def train(settings: TrainingSettings) -> None:
    """Train a network, with as many processes as there are, and save it as a pipeline.

    Devices, machines and mixed precision are those that `accelerate` is configured for. The folder loads with
    `NoisedDiffusionClassifierPipeline.from_pretrained`, and its network and scheduler with any class of diffusers.

    Args:
        settings: Settings of the training.

    Raises:
        OSError: The folder cannot be written.
        TypeError, ValueError: A setting is invalid, or does not go with the data set.
        FloatingPointError: The training diverges.

    Example:
        >>> train(TrainingSettings("digits", "model", max_train_steps=2000))  # doctest: +SKIP
    """
    settings.check()
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=settings.mixed_precision,
        project_config=ProjectConfiguration(settings.output_dir, automatic_checkpoint_naming=True, total_limit=2),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
    )
    set_seed(settings.seed)
    data = load_images(settings)
    largest = len(data.rows) // accelerator.num_processes
    if settings.batch_size > largest:
        raise ValueError(
            f"`--batch-size` must be at most {largest} for {len(data.rows)} images on {accelerator.num_processes} "
            f"processes, got {settings.batch_size}."
        )
    training = _Training(settings, accelerator, data)
    if settings.resume:
        training.resume()
    if accelerator.is_main_process:
        settings.record()
    training.run_steps()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        training.save()
    accelerator.end_training()


class _Training:
    """One process's part of a training."""

    def __init__(self, settings: TrainingSettings, accelerator: Accelerator, data: TrainingImages):
        self.settings, self.accelerator, self.data = settings, accelerator, data
        self.denoiser = build_denoiser(settings, data).to(accelerator.device)
        with accelerator.autocast():
            choose_threads_for(self.denoiser)
        unet = self.denoiser.unet
        self.ema = EMAModel(unet.parameters(), decay=settings.ema_decay, use_ema_warmup=True, power=3 / 4)
        optimizer = torch.optim.AdamW(unet.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        schedule = get_scheduler(
            "cosine",
            optimizer,
            num_warmup_steps=settings.lr_warmup_steps * accelerator.num_processes,
            num_training_steps=settings.max_train_steps * accelerator.num_processes,
        )
        loader = torch.utils.data.DataLoader(
            data.rows, settings.batch_size, shuffle=True, drop_last=True, num_workers=settings.num_workers
        )
        # what a checkpoint holds, in this order
        self.network, self.optimizer, self.schedule, self.loader = accelerator.prepare(
            self.denoiser, optimizer, schedule, loader
        )
        self.parameters = list(self.network.parameters())
        self.ema.to(accelerator.device)
        accelerator.register_for_checkpointing(self.ema)

    def resume(self) -> None:
        """Load the newest whole checkpoint. If a kill left none, the training begins anew."""
        folder = self.settings.checkpoints
        if self.accelerator.is_local_main_process:
            remove_torn(folder)
        self.accelerator.wait_for_everyone()
        whole = whole_checkpoints(folder)
        if whole:
            self.accelerator.load_state(str(whole[-1]))
        self.accelerator.project_configuration.iteration = next_number(folder)

    def run_steps(self) -> None:
        """Train up to step `max_train_steps`, with checkpoints."""
        settings, accelerator = self.settings, self.accelerator
        start = self.ema.optimization_step
        # noise differs between processes and after a resume
        set_seed(settings.seed + 1 + start, device_specific=True)
        batches = self._batches(start)
        hidden = {} if accelerator.is_main_process else {"disable": True}  # TQDM_DISABLE decides on the main process
        bar = tqdm(range(start, settings.max_train_steps), **hidden)
        for step in bar:
            loss = self._step(next(batches))
            rate = self.schedule.get_last_lr()[0]
            bar.set_postfix(loss=f"{loss:.4f}", lr=f"{rate:.1e}", refresh=False)
            is_last = step + 1 == settings.max_train_steps
            if is_last or (step + 1) % settings.checkpointing_steps == 0:
                self._require_finite(step + 1)
            if (step + 1) % settings.checkpointing_steps == 0:
                accelerator.save_state()

    def _require_finite(self, steps: int) -> None:
        """Raise a `FloatingPointError` if the training has diverged, before its weights replace good ones."""
        if not all(parameter.isfinite().all() for parameter in self.parameters):
            raise FloatingPointError(
                f"The weights must be finite, got NaN or infinity within the {steps:,} steps so far. Earlier "
                "checkpoints are kept; a lower `--learning-rate` may help, in a new `--output-dir`."
            )

    def _batches(self, start: int) -> Iterator[dict[str, Any]]:
        """Endless batches, without the first `start`."""
        epoch, skip = divmod(start, len(self.loader))
        while True:
            self.loader.set_epoch(epoch)
            yield from self.accelerator.skip_first_batches(self.loader, skip)
            epoch, skip = epoch + 1, 0

    def _step(self, batch: dict[str, Any]) -> float:
        """Train on one batch; returns its loss."""
        loss = self._loss(augment(batch["images"], self.settings) * 2 - 1, batch["labels"])
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.ema.step(self.parameters)
        return loss.item()

    def _loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss for images `(N, C, H, W)`, model units, some of them without their class."""
        dropped = torch.rand(len(labels), device=labels.device) < self.settings.label_dropout
        sigma, weight = draw_noise_levels(len(images), self.denoiser.scheduler, images.device, self.settings)
        x_sigma = images + sigma.view(-1, 1, 1, 1) * torch.randn_like(images)
        classes = labels.masked_fill(dropped, len(self.data.class_names))  # the last one means "no class"
        error = (self.network(x_sigma, sigma, classes) - images) ** 2
        return (weight.view(-1, 1, 1, 1) * error).mean()

    def save(self) -> None:
        """Save the averaged weights as a pipeline."""
        denoiser: Denoiser = self.denoiser
        self.ema.copy_to(denoiser.unet.parameters())
        pipe = NoisedDiffusionClassifierPipeline(
            denoiser.unet,
            denoiser.scheduler,
            id2label=dict(enumerate(self.data.class_names)),
            null_class=denoiser.null_class,
        )
        pipe.save_pretrained(self.settings.output_dir)
