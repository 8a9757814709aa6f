"""Verdict runs: points of a sweep with seeds, and worlds, that nothing was chosen on."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from llava_lab.core import verdict_worlds
from llava_lab.experiment.compose import Tree, leaves, merge
from llava_lab.experiment.layers import read_layers
from llava_lab.experiment.sweep import Layers, Point, Sweep

FIRST_SEED = 100  # its world is the first of those that are kept for verdicts
WORLDS = ("tiny_world", "tiny_videos")


@dataclass(frozen=True)
class Chosen(Sweep):
    """A sweep of chosen points.

    Attributes:
        chosen: The points.
    """

    chosen: tuple[Point, ...] = ()

    def points(self) -> list[Point]:
        """The chosen points."""
        return list(self.chosen)


def world_of(seed: int) -> int:
    """Seed of the world of a seed's run."""
    return verdict_worlds.FIRST + seed - FIRST_SEED


def choose(
    sweep: Sweep,
    wanted: Iterable[tuple[str, int]],
    draw: Callable[[int], Mapping[str, Any]],
    more: Layers = (),
) -> Chosen:
    """Some points of a sweep, each in a world of its seed's own.

    Args:
        sweep: The sweep.
        wanted: Names of points, each with a seed.
        draw: Options that a seed has beside its point's, which win.
        more: Files and overrides for all points.

    Raises:
        ValueError: If an option names the development world where it cannot be replaced.
    """
    named = {point.name: point for point in sweep.points()}
    points = []
    for name, seed in dict.fromkeys(wanted):
        point = named[name]
        options = {**draw(seed), **point.options}
        moved = _moved(sweep, Point(point.labels, options, seed), more)
        points.append(Point(point.labels, {**options, **moved}, seed))
    known = {field.name: getattr(sweep, field.name) for field in fields(Sweep)}
    return Chosen(**known, chosen=tuple(points))


def _moved(sweep: Sweep, point: Point, more: Layers) -> dict[str, Any]:
    """Options that put a world of the seed's own in place of each that the point would read."""
    tree: Tree = {}
    for layer in read_layers(sweep.layers(point, more), quiet=True):
        tree = merge(tree, layer)
    found: dict[str, Any] = {}
    world = world_of(point.seed)
    for key in WORLDS:
        if not isinstance(given := tree.get(key), Mapping):
            continue
        old = str(given["root"])
        parent, _, name = old.rpartition("/")
        new = "/".join([*([parent] if parent else []), str(world), name])
        found |= {f"{key}.seed": world, f"{key}.root": new}
        for place, value in leaves(tree.get("paths") or {}):
            if isinstance(value, str) and f"{value}/".startswith(f"{old}/"):
                found[f"paths.{place}"] = new + value.removeprefix(old)
        rest = {name: each for name, each in tree.items() if name not in (*WORLDS, "paths")}
        if f"{old}/" in f"{rest}":
            raise ValueError(
                f"sweep {sweep.name}, {point}: an option names {old}, the world of development; "
                "write ${paths.root} or ${paths.video_root} in its place"
            )
    return found
