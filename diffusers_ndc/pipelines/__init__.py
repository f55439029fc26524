"""The pipelines that people load: they classify, certify, save and push. Their public names are in `diffusers_ndc`."""
