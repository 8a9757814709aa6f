"""Parts: a class of ours and its arguments, as YAML names them."""

from typing import Any


def class_of(kind: type, **arguments: Any) -> dict[str, Any]:
    """A class by its path, with its arguments."""
    return {"class_path": f"{kind.__module__}.{kind.__name__}", "init_args": arguments}
