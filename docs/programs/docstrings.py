"""How the source is read for the reference."""

import ast

import griffe


class Readable(griffe.Extension):
    """Shows code in examples as code, and the help of a setting as its description.

    The section of examples is called `Example:` in the docstrings, which would be shown as text. The fields of
    `Settings` have their help in `_option(default, help)` or `field(metadata={"help": ...})`.
    """

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs) -> None:
        call = attr.value
        if not isinstance(call, griffe.ExprCall):
            return
        if str(call.function) == "_option":
            default, text = call.arguments
            attr.value = default
            attr.docstring = griffe.Docstring(ast.literal_eval(str(text)), parent=attr)
        elif str(call.function) == "field" and "'help'" in str(call):
            (metadata,) = call.arguments
            attr.value = None
            attr.docstring = griffe.Docstring(ast.literal_eval(str(metadata.value))["help"], parent=attr)
