"""Experiment: a configuration as a value that is read, changed, fitted and evaluated."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from jsonargparse import Namespace

from llava_lab.core import ranks
from llava_lab.core.numbers import at_least
from llava_lab.core.shipped import here_or_shipped
from llava_lab.core.yaml_file import to_yaml
from llava_lab.experiment import unread
from llava_lab.experiment.build import Parts, build
from llava_lab.experiment.compose import Tree, merge, read_options, short
from llava_lab.experiment.fitting import Fitting
from llava_lab.experiment.layers import own_settings, read_layers
from llava_lab.experiment.options import parser, with_default_classes
from llava_lab.experiment.own import Own
from llava_lab.experiment.references import resolve
from llava_lab.experiment.run import Run


class Experiment:
    """One experiment: everything that decides what is trained and what is measured.

    It is a value: `changed` gives another experiment and leaves this one as it is. Options are
    those of the YAML files, in the short form: `{"model.connector.depth": 3}`.

    Args:
        options: Options by their names, which may be dotted; values are plain data or classes.
    """

    def __init__(self, options: Mapping[str, Any]):
        self._tree: Tree = read_options(_plain(options))
        self._own: list[Own] = []  # what the user has set himself, beside or in these files
        self._files: list[Path] = []

    @classmethod
    def read(cls, *files: str | Path) -> "Experiment":
        """The experiment of a YAML file, and of files that change it, of which later ones win.

        Where none names a scale, the tiny one is taken.

        Raises:
            ValueError: If a file cannot be read, or has an option of an older version.
        """
        return cls.read_layers([here_or_shipped(Path(file)) for file in files])

    @classmethod
    def read_layers(cls, layers: Sequence[Path | str]) -> "Experiment":
        """The experiment of files and of overrides, `model.connector.depth=3`, later ones to win.

        Raises:
            ValueError: If a file cannot be read, or an option is of an older version.
        """
        files = [each for each in layers if isinstance(each, Path)]
        return cls._of(read_layers(layers), own_settings(layers), files)

    @classmethod
    def _of(cls, layers: Sequence[Tree], own: Sequence[Own], files: Sequence[Path]) -> "Experiment":
        found = cls({})
        found._own, found._files = list(own), list(files)
        for layer in layers:
            found._tree = merge(found._tree, layer)
        return found

    def changed(self, options: Mapping[str, Any]) -> "Experiment":
        """The experiment with other options; those of a class that is replaced are dropped."""
        named = [Own(f"{key}={value}"[:80], {key: value}) for key, value in options.items()]
        trees = [self._tree, Experiment(options)._tree]
        return self._of(trees, [*self._own, *named], self._files)

    @cached_property
    def options(self) -> Namespace:
        """All options, checked, with every default filled in; in jsonargparse's long form.

        Raises:
            ValueError: Names the option that is wrong, or that would do nothing.
        """
        tree = with_default_classes(resolve(self._tree))
        found = parser(tree["stages"]).checked(tree)
        at_least(0, seed_everything=found.seed_everything)
        unread.check(self._own, self._files, self._tree, found)
        return found

    @cached_property
    def config(self) -> Tree:
        """All options with every default filled in, as plain data in the short form."""
        return short(_plain(self.options))

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return self.options.experiment

    def text(self) -> str:
        """The configuration as YAML; reading it again is the same experiment."""
        return to_yaml(self.config)

    def run(self, runs: str | Path = "runs") -> Run:
        """The run of this experiment: its folder and, once it is fitted, its results.

        Args:
            runs: Folder of all runs.
        """
        trainer = {k: v for k, v in self.config["trainer"].items() if k not in ranks.WHERE}
        identity = Experiment({**self.config, "trainer": trainer})
        text, options = to_yaml(identity._tree), self.options
        return Run(Path(runs), self.name, options.scale, options.seed_everything, text)

    def build(self) -> Parts:
        """Build the model, the stages and the benchmarks; weights are drawn from the seed.

        Raises:
            ValueError: If an option would not be honoured, or parts do not fit together.
        """
        return build(self.options)

    def fit(
        self,
        runs: str | Path = "runs",
        *,
        last: str | None = None,
        fresh: bool = False,
        checkpoint_seconds: float = 60.0,
    ) -> Run:
        """Train the stages that are not finished yet, evaluate, and write the results.

        A stage that any run in the folder has finished under the same fingerprint is reused, and
        one that was interrupted goes on from its last checkpoint.

        Args:
            runs: Folder of all runs.
            last: Stage after which to stop, without evaluation; or None.
            fresh: Train every stage anew, reuse nothing.
            checkpoint_seconds: Time between checkpoints.

        Returns:
            The run, whose `results` are what results.json says.
        """
        return self.fitting(runs, fresh, checkpoint_seconds).fit(last)

    def test(self, runs: str | Path = "runs") -> Run:
        """Ask the benchmarks of this experiment's finished run again, and write the results.

        Args:
            runs: Folder of all runs.
        """
        return self.fitting(runs).test()

    def fitting(
        self, runs: str | Path = "runs", fresh: bool = False, checkpoint_seconds: float = 60.0
    ) -> Fitting:
        """What trains, finds and evaluates this experiment; arguments are those of `fit`."""
        return Fitting(self.options, self.run(runs), fresh, checkpoint_seconds)


def _plain(value: Any) -> Any:
    """Plain data: mappings, lists and values that YAML can hold; classes by their names."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"{value!r:.80} is no plain data; give a class and its arguments: "
        "{'class_path': MyClass, 'depth': 3}, so that the experiment can be written down"
    )
