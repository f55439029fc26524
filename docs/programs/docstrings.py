"""How docstrings are read for the reference: the section `Example:` of diffusers' style holds code, as `Examples:`."""

import griffe


class ExampleSections(griffe.Extension):
    """Renames the sections, which would be shown as text otherwise."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
