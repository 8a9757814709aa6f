"""Parts: a class and its arguments -> `class_path` and `init_args` of YAML."""

from typing import Any


def class_of(kind: type, **arguments: Any) -> dict[str, Any]:
    """Write a class and its arguments as `class_path` and `init_args`."""
    return {"class_path": f"{kind.__module__}.{kind.__name__}", "init_args": arguments}
