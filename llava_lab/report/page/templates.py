"""12. Templates: the HTML files of the pages, which may include one another."""

from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined


def text_of(name: str) -> str:
    """The text of a file of a page, by its path below the package's folder of reports."""
    return (files("llava_lab.report") / name).read_text(encoding="utf-8")


def environment() -> Environment:
    """What renders a page: every value is escaped, and one that is lacking is an error."""
    return Environment(
        loader=FunctionLoader(text_of),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
