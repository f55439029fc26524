try:
    from diffusers_ndc.diffusion import ClassSifter  # noqa: F401
except ImportError as error:
    raise ImportError(
        "This model needs the package diffusers-ndc: pip install git+https://github.com/diffusers-ndc/diffusers-ndc"
    ) from error
