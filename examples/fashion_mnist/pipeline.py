try:
    from diffusers_ndc import NoisedDiffusionClassifierPipeline  # noqa: F401
except ImportError as error:
    raise ImportError(
        "This model needs the package diffusers-ndc: pip install git+https://github.com/diffusers-ndc/diffusers-ndc"
    ) from error
