"""Shared stages: which stages the points of a sweep have in common, told from their options alone.

Weights and data are not read, as fingerprints would need: a launcher runs where there is no room
for a model. Equal keys are equal fingerprints; different ones may be, and then a lock sees to it
that the stage is trained once.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Shared(NamedTuple):
    """A stage that several points begin with.

    Attributes:
        name: The stage's name.
        key: Equal for points whose stage is the same.
    """

    name: str
    key: str


def shared_stages(configs: Sequence[Mapping[str, Any]]) -> list[list[Shared]]:
    """Of each experiment the stages that it shares with others, the last of each group of them.

    Each of them begins with those before it in the list.

    Args:
        configs: Options of the experiments, as plain data.
    """
    keys = [_keys(config) for config in configs]
    count = Counter(stage.key for stages in keys for stage in stages)
    found = []
    for stages in keys:
        after = [count[stage.key] for stage in stages[1:]] + [1]
        pairs = zip(stages, after, strict=True)
        found.append([stage for stage, then in pairs if count[stage.key] > max(then, 1)])
    return found


def _keys(config: Mapping[str, Any]) -> list[Shared]:
    total = hashlib.sha256()
    for name in ("model", "seed_everything", "trainer", "tiny_world", "tiny_videos"):
        total.update(json.dumps([name, config.get(name)], sort_keys=True, default=str).encode())
    found = []
    for name, stage in config["stages"].items():
        total.update(json.dumps([name, stage], sort_keys=True, default=str).encode())
        found.append(Shared(name, total.hexdigest()[:12]))
    return found
