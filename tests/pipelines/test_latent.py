"""Latent and text-conditional models, tiny and randomly initialised: prompts, encoders, what is refused and why."""

import json
import subprocess
import sys

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from helpers.networks import (
    PROMPTS,
    pixel_model,
    tiny_dit,
    tiny_text_encoder,
    tiny_text_unet,
    tiny_tokenizer,
    tiny_unet,
    tiny_vae,
)

from diffusers_ndc import (
    Certificate,
    DenoisedClassifier,
    DenoisedDiffusionClassifier,
    Denoiser,
    LatentDiffusionClassifierPipeline,
    NoisedDiffusionClassifier,
    NoisedDiffusionClassifierPipeline,
    NoiseLevels,
    SmoothedClassifier,
    embed_prompts,
)
from diffusers_ndc.common.copies import Copy, decide_all


LEVELS = NoiseLevels.log_grid(0.5, 5.0, 2)


def stable_diffusion(folder):
    StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(),
        tokenizer=tiny_tokenizer(),
        unet=tiny_text_unet(),
        scheduler=PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return {"prompts": PROMPTS}


def dit(folder):
    names = {0: "cat", 1: "dog", 2: "bird"}
    DiTPipeline(tiny_dit(), tiny_vae(shift_factor=0.1), DDIMScheduler(), names).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())  # as in the folders that were published
    index |= {"id2label": names, "transformer": ["diffusers", "Transformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return {}


@pytest.fixture(params=[stable_diffusion, dit])
def latent_folder(request, tmp_path):
    folder = tmp_path / "model"
    return folder, request.param(folder)


def load(folder, **arguments):
    pipe = LatentDiffusionClassifierPipeline.from_pretrained(folder, **arguments)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pictures():
    """Three clean 16 x 16 grey images in [0, 1]."""
    return torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def sd():
    """A text-conditional latent model."""
    return LatentDiffusionClassifierPipeline(
        tiny_vae(), DDPMScheduler(), tiny_text_unet(), None, tiny_tokenizer(), tiny_text_encoder(), prompts=PROMPTS
    )


def test_published_folders_load_classify_and_certify(latent_folder, pictures, tmp_path):
    """And what is saved answers as before, its pixel-space denoiser included."""
    folder, arguments = latent_folder
    clean = load(folder, **arguments)
    out = clean(pictures, seed=0, levels=LEVELS)
    assert out.logits.shape == (3, 3) and out.logits.std(dim=1).min() > 1e-3

    pipe = load(folder, **arguments, **pixel_model())
    assert torch.equal(pipe(pictures, seed=0, levels=LEVELS).logits, out.logits)
    noisy = pictures + 0.25 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    expected = pipe(noisy, sigma=0.25, seed=0, levels=LEVELS).logits
    certificate = pipe.certify(pictures[0], n0=3, n=20, levels=LEVELS, seed=0)
    assert certificate.verify() and certificate.sigma == 0.25
    assert (
        certificate.base_classifier["method"] == "dds" and certificate.base_classifier["classifier"]["method"] == "dc"
    )
    assert Certificate.from_dict(certificate.to_dict()) == certificate
    assert certificate.agrees(pipe.replay(pictures[0], certificate))
    # of each copy, one denoising and two levels of three classes
    assert certificate.evaluations == (sum(certificate.selection_counts.values()) + 20) * (1 + 2 * 3)

    pipe.save_pretrained(tmp_path / "saved", variant="fp16", max_shard_size="20KB")
    read = load(tmp_path / "saved", variant="fp16")
    assert torch.equal(read(noisy, sigma=0.25, seed=0, levels=LEVELS).logits, expected)
    assert read.certify(pictures[0], n0=3, n=20, levels=LEVELS, seed=0) == certificate
    placed = load(tmp_path / "saved", variant="fp16", device_map="cpu")
    assert torch.equal(placed(noisy, sigma=0.25, seed=0, levels=LEVELS).logits, expected)
    shared = LatentDiffusionClassifierPipeline.from_pipe(pipe)
    assert torch.equal(shared(noisy, sigma=0.25, seed=0, levels=LEVELS).logits, expected)


def test_half_precision_and_offloading(latent_folder, pictures):
    folder, arguments = latent_folder
    expected = load(folder, **arguments)(pictures, seed=0, levels=LEVELS).logits
    half = load(folder, **arguments, **pixel_model(), dtype=torch.bfloat16)
    assert {half.vae.dtype, (half.unet or half.transformer).dtype} == {torch.bfloat16}
    out = half(pictures, seed=0, levels=LEVELS).logits
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, rtol=0.2, atol=5.0)
    half.enable_model_cpu_offload(device="cpu")
    torch.testing.assert_close(half(pictures, seed=0, levels=LEVELS).logits, out)
    assert hasattr(half.vae, "_hf_hook")
    assert half.certify(pictures[0], n0=2, n=5, levels=LEVELS).verify()


def test_networks_that_were_compiled_and_put_back(latent_folder, pictures):
    folder, arguments = latent_folder
    pipe = load(folder, **arguments)
    expected = pipe(pictures, seed=0, levels=LEVELS).logits
    name = "transformer" if pipe.unet is None else "unet"
    setattr(pipe, name, torch.compile(getattr(pipe, name), backend="eager"))
    torch.testing.assert_close(pipe(pictures, seed=0, levels=LEVELS).logits, expected)


def test_offload_order_names_every_network(sd):
    others = {"scheduler", "pixel_scheduler", "tokenizer", *sd._exclude_from_cpu_offload}
    networks = {name for name in sd.components if name not in others}
    assert set(sd.model_cpu_offload_seq.split("->")) == networks


@pytest.mark.slow
def test_plain_diffusion_pipeline_loads_it_in_a_fresh_process(sd, tmp_path):
    sd.save_pretrained(tmp_path)
    program = (
        "import sys; from diffusers import DiffusionPipeline; "
        "pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True); "
        "print(type(pipe).__name__, len(pipe.config.prompts))"
    )
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert result.stdout.strip() == "LatentDiffusionClassifierPipeline 3", result.stderr


def test_prompt_embeddings_worked_out_by_hand():
    """Padded as Stable Diffusion pads, averaged over the prompts of a class, the empty prompt last."""
    tokenizer, encoder = tiny_tokenizer(), tiny_text_encoder()
    rows = embed_prompts(PROMPTS, tokenizer, encoder)
    assert rows.shape == (4, 20, 16)

    def embedded(text):
        ids = tokenizer(text, padding="max_length", max_length=20, return_tensors="pt").input_ids
        with torch.no_grad():
            return encoder(ids).last_hidden_state[0]

    torch.testing.assert_close(rows[0], (embedded("a photo of a cat") + embedded("a cat")) / 2)
    torch.testing.assert_close(rows[1], embedded("a dog"))
    torch.testing.assert_close(rows[3], embedded(""))
    assert torch.equal(embed_prompts([PROMPTS[0], "a dog", PROMPTS[2]], tokenizer, encoder), rows)
    assert (rows[0] - rows[1]).abs().max() > 0.1
    masked = embed_prompts(PROMPTS, tokenizer, tiny_text_encoder(use_attention_mask=True))
    assert not torch.allclose(masked, rows)


def test_latents_and_their_denoiser_worked_out_by_hand(sd, pictures):
    """The mode of the encoder's distribution, shifted and scaled; the class as text; the empty prompt as no class."""
    denoiser = Denoiser(
        sd.unet,
        sd.scheduler,
        null_class=3,
        prompt_embeddings=embed_prompts(PROMPTS, sd.tokenizer, sd.text_encoder),
        vae=tiny_vae(shift_factor=0.1),
    )
    x = 2 * pictures - 1
    z = denoiser.encode(x)
    expected = (sd.vae.encode(x).latent_dist.mean - 0.1) * 0.7
    torch.testing.assert_close(z, expected)
    assert torch.equal(denoiser.encode(x), z) and z.shape == (3, 4, 8, 8)
    rows = embed_prompts(PROMPTS, sd.tokenizer, sd.text_encoder)
    a, t = sd.scheduler.alphas_cumprod[400], torch.tensor(400)
    sigma = ((1 - a) / a).sqrt().item()
    z_sigma = z + sigma * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    for labels, text in ((torch.tensor([0, 1, 2]), rows[:3]), (None, rows[3:].expand(3, -1, -1))):
        output = sd.unet(a.sqrt() * z_sigma, t, text).sample
        torch.testing.assert_close(denoiser(z_sigma, sigma, labels), z_sigma - sigma * output, rtol=1e-3, atol=1e-3)
    assert (denoiser.null_source, denoiser.image_size, denoiser.image_channels) == ("null_class", (16, 16), 1)


def test_a_dit_denoiser_worked_out_by_hand(pictures):
    network, scheduler = tiny_dit(), DDIMScheduler(clip_sample=False)
    denoiser = Denoiser(network, scheduler, vae=tiny_vae())
    assert (denoiser.num_classes, denoiser.null_class) == (3, 3)
    z = denoiser.encode(2 * pictures - 1)
    scheduler.set_timesteps(1000)
    a, t = scheduler.alphas_cumprod[400], torch.tensor(400)
    for labels, told in ((torch.tensor([0, 1, 2]), [0, 1, 2]), (None, [3, 3, 3])):
        output = network(a.sqrt() * z, timestep=t.expand(3), class_labels=torch.tensor(told)).sample
        expected = scheduler.step(output[:, :4], t, a.sqrt() * z).pred_original_sample
        h = denoiser(z, ((1 - a) / a).sqrt().item(), labels)
        torch.testing.assert_close(h, expected, rtol=1e-3, atol=1e-3)


def test_losses_are_those_of_the_latents(sd, pictures):
    """The diffusion classifier of the pipeline is that of latents given as images."""
    classifier = sd.classifier(levels=LEVELS, seed=5)
    in_space = Denoiser(
        sd.unet, sd.scheduler, null_class=3, prompt_embeddings=embed_prompts(PROMPTS, sd.tokenizer, sd.text_encoder)
    )
    with torch.no_grad():
        latents = sd.denoiser.encode(2 * pictures - 1)
        expected = NoisedDiffusionClassifier(in_space, levels=LEVELS, seed=5)((latents + 1) / 2)
        torch.testing.assert_close(classifier(pictures), expected, rtol=1e-4, atol=1e-3)
    assert "prompt_embeddings" in classifier.settings
    for batch_size in (1, 64):
        small = sd(pictures, levels=LEVELS, seed=5, batch_size=batch_size).logits
        torch.testing.assert_close(small, sd(pictures, levels=LEVELS, seed=5).logits, rtol=1e-4, atol=1e-3)


def test_other_prompts_at_once(sd, pictures):
    before = sd(pictures, seed=0, levels=LEVELS).logits
    sd.set_prompts(["a hat", "a mat"], {0: "hat", 1: "mat"})
    assert sd(pictures, seed=0, levels=LEVELS).logits.shape == (3, 2) and sd.config.id2label[1] == "mat"
    sd.set_prompts(PROMPTS)
    assert torch.equal(sd(pictures, seed=0, levels=LEVELS).logits, before)


def test_calibrated_levels_serve_clean_and_denoised_images(sd, pictures):
    sd.register_modules(**pixel_model())
    labels = sd(pictures, levels=LEVELS, seed=0).labels * 3 + [0, 1, 2]  # mostly what it says itself
    levels = sd.calibrate(pictures.repeat(4, 1, 1, 1), labels, num_levels=2, candidates=LEVELS, sift="losses")
    assert sd.classifier().levels == sd.classifier(0.25).classifier.levels == levels
    with pytest.raises(ValueError, match="`sigma` must be 0.*got 0.25"):
        sd.calibrate(pictures, [0, 1, 2], 0.25)


@pytest.mark.parametrize("settings, evaluations", [({}, 1), ({"num_class_embeds": 5}, 5)])
def test_noise_is_on_the_pixels_and_removed_before_the_encoder(sd, pictures, settings, evaluations):
    """An unconditional model in front, or the mean over the classes of another one."""
    sd.register_modules(**pixel_model(**settings))
    base = sd.classifier(0.25, levels=LEVELS, seed=7)
    noisy = pictures + 0.25 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        front = Denoiser(sd.pixel_unet, sd.pixel_scheduler, None if settings else 0)
        clean = (front(2 * noisy - 1, 0.5).clamp(-1, 1) + 1) / 2
        expected = sd.classifier(levels=LEVELS, seed=7)(clean)
        torch.testing.assert_close(base(noisy), expected, rtol=1e-4, atol=1e-3)
        copies = [Copy(place, image, None) for place, image in enumerate(noisy)]
        for decided in decide_all(base.pool(), copies):  # the way that votes take
            torch.testing.assert_close(decided.logits, expected[decided.keys], rtol=1e-4, atol=1e-3)
            assert decided.evaluations == [evaluations + 2 * 3] * len(decided.keys)
        plain = sd.classifier(levels=LEVELS, seed=7)(noisy)
        assert (plain - expected).abs().max() > 1, "the denoising should make a difference"
    assert base.evaluations == 2 * 3 * (evaluations + 2 * 3) and not base.randomized
    image = noisy[:1].requires_grad_()
    (gradient,) = torch.autograd.grad(base(image)[0, 0], image)
    assert gradient.abs().max() > 0


def test_counts_do_not_depend_on_batches(sd, pictures):
    sd.register_modules(**pixel_model())
    settings = {"n0": 3, "n": 25, "levels": LEVELS, "seed": 2}
    together = sd.certify(pictures, batch_size=64, **settings)
    assert together[1:] == sd.certify(pictures[1:], batch_size=7, **settings)
    assert sd.predict(pictures[0], n=10, levels=LEVELS, seed=1).counts


def test_the_denoiser_may_have_another_size_than_the_latent_model(sd, pictures):
    """The radius is in the pixels of the denoiser; what follows it belongs to the classifier."""
    sd.register_modules(**pixel_model(size=8))
    small = pictures[:, :, ::2, ::2]
    assert sd.certify(small[0], n0=2, n=5, levels=LEVELS).verify()
    with pytest.raises(ValueError, match="8 x 8"):
        sd.certify(pictures[0])


def test_text_conditional_models_of_pixels_are_certified_without_an_encoder(images):
    """Their noise is on the pixels anyway."""
    rows = embed_prompts(PROMPTS, tiny_tokenizer(), tiny_text_encoder())
    denoiser = Denoiser(tiny_text_unet(1), DDPMScheduler(), null_class=3, prompt_embeddings=rows)
    for method in ("apndc", "epndc"):
        base = NoisedDiffusionClassifier(denoiser, 0.25, method, NoiseLevels.log_grid(0.8, 5.0, 2))
        assert SmoothedClassifier(base, 0.25).certify(images[:1], n0=2, n=10)[0].verify()


UNSOUND = "noise on the pixels.*pixel-space denoiser in front"


@pytest.mark.parametrize(
    "call, error, match",
    [
        (lambda p, x: p.certify(x), ValueError, f"`sigma` must be 0.*without `pixel_unet`, got 0.25.*{UNSOUND}"),
        (lambda p, x: p.certify(x, sigma=0), ValueError, "`sigma` must be above 0, got 0.*`certify_unsmoothed`"),
        (lambda p, x: p.certify_unsmoothed(x), ValueError, "got a latent model.*losses on pixels"),
        (lambda p, x: p.predict(x, sigma=0.5), ValueError, f"`sigma` must be 0.*got 0.5.*{UNSOUND}"),
        (lambda p, x: p(x, sigma=0.25), ValueError, UNSOUND),
        (lambda p, x: p.certify(x, method="apndc"), ValueError, f"`method` must be 'dds'.*got 'apndc'.*{UNSOUND}"),
        (lambda p, x: p.certify(x, method="epndc"), ValueError, f"`method` must be 'dds'.*got 'epndc'.*{UNSOUND}"),
        (lambda p, x: p(x, method="epndc"), ValueError, f"`method` must be 'dc'.*got 'epndc'.*{UNSOUND}"),
        (lambda p, x: p(x[:, :, :8]), ValueError, "16 x 16"),
        (lambda p, x: p(x * 255), ValueError, "`images` must have values in"),
        (lambda p, x: p.set_prompts(["a"]), ValueError, "`prompts`.*at least two"),
        (
            lambda p, x: p.set_prompts(["a", "b"], {0: "a"}),
            ValueError,
            r"`prompts` must have .* classes as `id2label` \(1\), got 2",
        ),
        (lambda p, x: p.set_prompts(["a", "b" * 40]), ValueError, "`prompts` (?=.* 20).*'bb.*42 tokens"),
        (lambda p, x: NoisedDiffusionClassifier(p.denoiser, 0.25), ValueError, UNSOUND),
        (lambda p, x: DenoisedClassifier(p.denoiser, None, None, 0.25), ValueError, "`denoiser` .*latent model"),
        (
            lambda p, x: DenoisedDiffusionClassifier(p.denoiser, p.classifier(), 0.25),
            ValueError,
            "`denoiser` .*latent model",
        ),
    ],
)
def test_refuses_what_is_not_sound_or_does_not_fit(sd, pictures, monkeypatch, call, error, match):
    def never(*args, **kwargs):
        raise AssertionError("work was done")

    monkeypatch.setattr(sd.unet, "forward", never)
    monkeypatch.setattr(sd.vae, "encode", never)
    with pytest.raises(error, match=match):
        call(sd, pictures)


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ({"prompts": ["a cat"]}, ValueError, "`prompts` .*at least two"),
        ({"prompts": "cat"}, ValueError, "`prompts` .*'cat'"),
        ({"prompts": {0: "a", 2: "b"}}, ValueError, "`prompts` .*class index from 0"),
        ({"prompts": ["a", ""]}, ValueError, r"`prompts` .*\['a', ''\]"),
        ({"prompts": ["a", []]}, ValueError, r"`prompts` .*\['a', \[\]\]"),
        ({"prompts": ["a", 3]}, ValueError, r"`prompts` .*\['a', 3\]"),
        ({"prompts": ["a", "a"]}, ValueError, "`prompts` .* for the classes 0 and 1"),
        ({"prompts": None}, ValueError, "`unet`.*cross-attention.*`prompts`"),
        ({"id2label": {0: "a", 1: "b"}}, ValueError, r"`prompts` must have .* classes as `id2label` \(2\), got 3"),
        ({"id2label": {0: "a", 1: "b", 3: "c"}}, ValueError, r"`id2label` must have the keys 0 to 2, got \[0, 1, 3\]"),
        ({"null_class": 3}, ValueError, "`null_class` must be None with `prompts`, got 3"),
        ({"tokenizer": None}, ValueError, "`tokenizer` and `text_encoder` must be given with `prompts`"),
        ({"text_encoder": tiny_text_encoder(hidden_size=8)}, ValueError, "cross_attention_dim"),
        (
            {"text_encoder": torch.nn.Linear(1, 1)},
            TypeError,
            "`text_encoder` must be of type CLIPTextModel, got Linear",
        ),
        ({"unet": torch.nn.Linear(1, 1)}, TypeError, "`unet` must be of type UNet2DConditionModel .*, got Linear"),
        ({"unet": None}, ValueError, "`unet` or `transformer` must be given, got neither"),
        ({"transformer": tiny_dit()}, ValueError, "`unet` or `transformer` must be given, got both"),
        ({"unet": None, "transformer": tiny_dit()}, ValueError, "takes no prompts"),
        ({"unet": tiny_text_unet(num_class_embeds=3)}, ValueError, "class embedding.*beside"),
        ({"unet": tiny_text_unet(3)}, ValueError, "`vae` (?=.*4).* latent channels"),
        ({"vae": torch.nn.Linear(1, 1)}, TypeError, "`vae` must be of type AutoencoderKL, got Linear"),
        ({"vae": tiny_vae(latents_mean=[0.0] * 4)}, ValueError, "`vae` .*latents_mean"),
        ({"pixel_unet": tiny_unet()}, ValueError, "`pixel_unet` and `pixel_scheduler` must both be given"),
        (
            {**pixel_model(), "pixel_scheduler": tiny_tokenizer()},
            TypeError,
            "`pixel_scheduler` must be of type SchedulerMixin, got CLIP",
        ),
        ({"scheduler": tiny_tokenizer()}, TypeError, "`scheduler` must be of type SchedulerMixin, got CLIP"),
    ],
)
def test_refuses_components_that_do_not_fit(sd, arguments, error, match):
    with pytest.raises(error, match=match):
        LatentDiffusionClassifierPipeline(**{**sd.components, "prompts": PROMPTS, **arguments})


def test_refuses_classifiers_that_cannot_stand_behind_a_denoiser(sd):
    pixels = Denoiser(*pixel_model().values(), num_classes=0)
    for classifier, error, match in (
        (torch.nn.Linear(1, 1), TypeError, "`classifier` .*Linear"),
        (
            NoisedDiffusionClassifier(Denoiser(tiny_unet(), DDPMScheduler()), 0.25),
            ValueError,
            "`classifier` .*sigma=0.25",
        ),
    ):
        with pytest.raises(error, match=match):
            DenoisedDiffusionClassifier(pixels, classifier, 0.25)


def test_refuses_a_dit_that_drops_labels_at_random():
    with pytest.raises(ValueError, match="`transformer` .*training mode"):
        Denoiser(tiny_dit().train(), DDPMScheduler(), vae=tiny_vae())


def test_a_latent_model_is_not_taken_for_one_of_pixels(tmp_path):
    """Its latents may well have as many channels as an image."""
    unet, vae = tiny_unet(in_channels=3, out_channels=3), tiny_vae(latent_channels=3)
    LatentDiffusionClassifierPipeline(vae, DDPMScheduler(), unet, null_class=3).save_pretrained(tmp_path)
    assert load(tmp_path)(torch.rand(1, 1, 16, 16), levels=LEVELS).logits.shape == (1, 3)
    with pytest.raises(ValueError, match="pixels, got one with a `vae`.*LatentDiffusionClassifierPipeline"):
        NoisedDiffusionClassifierPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("network", [torch.nn.Linear(1, 1), tiny_vae(), None])
def test_refuses_networks_of_an_unknown_class(network):
    with pytest.raises(TypeError, match="`unet` .*UNet2DModel"):
        Denoiser(network, DDPMScheduler())
    with pytest.raises(TypeError, match="`unet` .*UNet2DModel"):
        Denoiser(network, DDPMScheduler(), num_classes=0)


def test_a_denoiser_without_classes_denoises_and_does_not_classify(images):
    network = tiny_unet(num_class_embeds=None)
    denoiser = Denoiser(network, DDPMScheduler(), num_classes=0)
    assert denoiser(images, 0.5).shape == images.shape and denoiser.null_evaluations == 1
    with pytest.raises(ValueError, match="`class_labels`"):
        denoiser(images, 0.5, torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="`denoiser` .*classes"):
        NoisedDiffusionClassifier(denoiser)
    with pytest.raises(ValueError, match="`num_classes` .*0 beside"):
        Denoiser(network, DDPMScheduler(), num_classes=0, null_class=3)
    with pytest.raises(ValueError, match="class embedding"):
        Denoiser(tiny_dit(), DDPMScheduler(), num_classes=0)
    with pytest.raises(ValueError, match="class embedding"):
        Denoiser(tiny_unet(), DDPMScheduler(), num_classes=0)
