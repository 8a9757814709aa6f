"""fit, validate, test and predict: LightningCLI with stages."""

import logging
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from rich.console import Console

from llava_lab.cli.verb import one_message
from llava_lab.core import ranks
from llava_lab.core.atomic import link
from llava_lab.core.fingerprint import fingerprint, without
from llava_lab.core.records import read_record, write_record
from llava_lab.core.tensors import digest
from llava_lab.core.yaml_file import read_mapping
from llava_lab.evaluate.benchmark import BenchmarkDataModule
from llava_lab.evaluate.scores import Scores
from llava_lab.experiment.parser import LabParser, with_references
from llava_lab.experiment.run import Run, finished_stages, git_commit, peak_memory, read_stage
from llava_lab.model.llava import PARTS, Llava
from llava_lab.report.table import answer_notes, results_tables
from llava_lab.tiny_world.generate import TinyWorld
from llava_lab.tiny_world.videos import TinyVideos
from llava_lab.train.checkpoint import StageCheckpoint
from llava_lab.train.record import Bar, Record
from llava_lab.train.stage import load_trained, save_trained, stage_file
from llava_lab.train.steps import Step, Steps
from llava_lab.train.trainer import (
    check_options,
    check_stage_options,
    deciding,
    make_trainer,
    named_refusal,
)

TINY = "configs/scale/tiny.yaml"
STAGE_KEYS = (
    *("name", "fingerprint", "reused", "steps", "samples", "tokens", "seconds"),
    *("loss_first", "loss_last", "held_out", "rows_skipped"),
)


@dataclass
class Paths:
    """Files that experiments read; stages and benchmarks refer to them as `${paths...}`.

    Args:
        root: Folder of the published files, or of the tiny world that stands in for them.
        align: LLaVA-format file of the alignment stage.
        align_images: Folder of its images.
        instruct: LLaVA-format file of the instruction stage.
        instruct_images: Folder of its images.
        video_root: Folder of the published videos, or of the tiny ones that stand in for them.
        videos: LLaVA-format file of rows with videos.
        videos_folder: Folder of its videos.
        preferences: File of rows with a chosen and a rejected answer.
        preferences_folder: Folder of its videos or images.
        questions: Question file of the benchmark.
        questions_images: Folder of its images or videos.
    """

    root: str = "data"
    align: str | None = None
    align_images: str | None = None
    instruct: str | None = None
    instruct_images: str | None = None
    video_root: str = "data"
    videos: str | None = None
    videos_folder: str | None = None
    preferences: str | None = None
    preferences_folder: str | None = None
    questions: str | None = None
    questions_images: str | None = None


class LabCLI(LightningCLI):
    """Lightning's verbs; `fit` runs the stages of an experiment one after another."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The lab's own options."""
        parser.add_argument("--experiment", type=str, help="Name of the experiment.")
        parser.add_argument("--scale", type=str, default="", help="Name of the scale.")
        parser.add_argument(
            "--resolution", type=int, default=336, help="Side of a view at paper scale, in pixels."
        )
        parser.add_class_arguments(Paths, "paths")
        parser.add_argument(
            "--world", type=TinyWorld | None, default=None, help="Tiny world to make, or null."
        )
        parser.add_argument(
            "--video_world", type=TinyVideos | None, default=None, help="Tiny videos, or null."
        )
        parser.add_class_arguments(Steps, "stages", sub_configs=True)
        parser.add_argument("--runs", type=str, default="runs", help="Folder of all runs.")
        parser.add_argument(
            "--fresh", action="store_true", help="Train every stage anew, reuse nothing."
        )
        parser.add_argument(
            "--dry_run", action="store_true", help="Say what would be trained and what reused."
        )
        parser.add_argument(
            "--stage", type=str | None, default=None, help="Stop after the stage of this name."
        )
        parser.add_argument(
            "--checkpoint_seconds", type=float, default=60.0, help="Time between checkpoints."
        )

    def before_instantiate_classes(self) -> None:
        """Make the tiny worlds that are read, so that the classes that read them find them."""
        named = f"{self.options.stages} {self.options.get('data')}"
        for kind, key in ((TinyWorld, "world"), (TinyVideos, "video_world")):
            if (world := self.options[key]) is not None:
                made = kind(**dict(world))
                if f"{made.root}/" in named:
                    made.generate()

    @property
    def options(self) -> Namespace:
        """The verb's parsed configuration."""
        config: Any = self.config
        return config[self.subcommand]

    @property
    def init(self) -> Namespace:
        """The same, with its classes instantiated."""
        config: Any = self.config_init
        return config[self.subcommand]

    def open_run(self) -> Run:
        """The run that this configuration and seed name."""
        kept = self.options.clone()
        for key in ("config", "fresh", "dry_run", "stage", "runs", "checkpoint_seconds"):
            kept.pop(key, None)
        for key in ("ckpt_path", "verbose", "weights_only", "return_predictions", "dataloaders"):
            kept.pop(key, None)
        for key in ranks.WHERE:  # a run may go on elsewhere
            kept.pop(f"trainer.{key}", None)
        text = self._parser(self.subcommand).dump(kept, skip_validation=True, skip_unset=False)
        options = self.options
        return Run(
            Path(options.runs), options.experiment, options.scale, options.seed_everything, text
        )

    def steps(self) -> dict[str, Step]:
        """The experiment's stages, up to the one that `--stage` names."""
        named, last = self.init.stages.named(), self.options.stage
        if last is None:
            return named
        if last not in named:
            raise ValueError(f"stage: there is no stage {last!r} among {', '.join(named)}")
        names = list(named)
        return {name: named[name] for name in names[: names.index(last) + 1]}

    def instantiate_classes(self) -> None:
        """Refuse options that would not be honoured, before anything is built."""
        if self.options.seed_everything is False:
            raise ValueError("seed_everything: give a whole number; without one no run is repeated")
        check_options(self.options.trainer.as_dict(), "trainer")
        for name, stage in self.options.stages.as_dict().items():
            if stage is not None:
                check_stage_options(stage["trainer"], f"stages.{name}.trainer")
        super().instantiate_classes()

    def instantiate_trainer(self, **more: Any) -> Trainer:
        """Lightning's own trainer; what it refuses ends in one message."""
        with named_refusal():
            return super().instantiate_trainer(**more)

    def chain(self, model: Llava, steps: dict[str, Step]) -> dict[str, str]:
        """Fingerprint of every stage; reads and checks all data before anything is spent."""
        options, weights = self.options, model.state_dict()
        # Stages whose views has no newlines are the same with a newline and without.
        newline = {key: weights.pop(key) for key in list(weights) if key.startswith("newline.")}
        parts = [
            [options.model.get(name), model.part(name)] for name in ("encoder", "connector", "llm")
        ]
        found: dict[str, str] = {}
        last = fingerprint(digest(weights), parts, options.seed_everything)
        for name, step in steps.items():
            step.data.name = name
            if (runs := Path(options.runs)).is_dir() and step.data.cache is None:
                step.data.cache = runs / ".verified"
            step.data.check(model)
            split = step.recipe.deciding_split(step.data, self.trainer)
            recipe = [options.stages[name].recipe, step.recipe.loss, *split]
            data = [options.stages[name].data, step.data.chat(model), step.data.content()]
            trainer = deciding({**options.trainer.as_dict(), **dict(options.stages[name].trainer)})
            if step.data.views.newline:
                last += digest(newline)
            found[name] = last = fingerprint(last, recipe, data, trainer)
        return found

    def stage_trainer(self, name: str, step: Step, run: Run, callbacks: list[Callback]) -> Trainer:
        """The trainer of one stage."""
        options = {**dict(self.init.trainer), **step.trainer}
        trainer = make_trainer(options, run.folder, name, callbacks, Bar(name))
        trainer.accumulate_grad_batches = step.data.accumulate(trainer.world_size)
        step.data.take_limits(trainer)
        return trainer

    def fit(self, model: Llava, **_: Any) -> None:
        """Train the stages that are not finished yet, evaluate, write and show the results."""
        run, began = self.open_run(), time.monotonic()
        say(f"run {run.folder}")
        steps = self.steps()
        self.datamodule.check(model)
        marks = self.chain(model, steps)
        asked = self.asked()
        finished = None if self.options.fresh or self.options.stage else run.finished(marks, asked)
        if self.options.dry_run:
            for name, mark in marks.items():
                found = self._find(run, mark)
                say(f"stage {name}: " + (f"would be reused from {found}" if found else "to train"))
            say(f"results: {finished}" if finished else "benchmarks: to ask")
            return
        if finished:
            run.begin()
            show(finished)
            say("finished before; `test` asks the benchmarks again, `--fresh` trains anew")
            return
        for name, mark in marks.items():
            if self._find(run, mark) is None:
                steps[name].recipe.check(model)
                steps[name].recipe.check_split(model, steps[name].data, self.trainer)
        run.begin()
        records, before = [], None
        for name, step in steps.items():
            with run.alone(marks[name], name):
                records.append(self._stage(model, run, name, step, marks[name], before))
            before = marks[name]
        if self.options.stage is not None:
            say(f"stopped after stage {self.options.stage}: {run.folder}")
            return
        evaluated = self._evaluate(model, run)
        results = {
            "stages": [{key: record[key] for key in STAGE_KEYS} for record in records],
            **evaluated,
            "judges": self.judges(),
            "asked": asked,
            "cost": {
                "parameters": sum(model.size(part) for part in PARTS),
                "trainable_parameters": steps[records[-1]["name"]].recipe.size(model)
                if records
                else 0,
                "visual_tokens_mean": records[-1]["visual_tokens_mean"] if records else 0,
                "train_flops": sum(record["flops"] for record in records),
                "seconds": round(time.monotonic() - began, 2),
                "seconds_trained_here": sum(r["seconds"] for r in records if not r["reused"]),
                "peak_memory_bytes": peak_memory(),
            },
        }
        show(run.finish(results))

    def asked(self) -> dict[str, str]:
        """Fingerprint of what each benchmark asks and of how it is asked and scored."""
        data = without(self.options.data.as_dict(), BenchmarkDataModule.idle)
        benchmarks = dict(zip(self.datamodule.benchmarks, data.pop("benchmarks"), strict=True))
        return {
            each.name: fingerprint(each.content(), config, data)
            for each, config in benchmarks.items()
        }

    def judges(self) -> dict[str, Any]:
        """Who judges which benchmark, and what it is told."""
        told = {each.name: each.metric.settings() for each in self.datamodule.benchmarks}
        return {name: settings for name, settings in told.items() if settings}

    def _find(self, run: Run, mark: str) -> Path | None:
        """Folder of a finished stage that may be reused."""
        return None if self.options.fresh else run.find(mark)

    def _stage(
        self, model: Llava, run: Run, name: str, step: Step, mark: str, before: str | None
    ) -> dict[str, Any]:
        """Find one stage finished, or train it to its end; its weights are in the model after."""
        folder = run.stage(name)
        checkpoint = StageCheckpoint(folder, mark, step.recipe, self.options.checkpoint_seconds)
        found = self._find(run, mark)
        if found is not None:
            record = read_stage(found)
            other = record["git"] != git_commit()
            by = f" (trained by commit {record['git']})" if other else ""
            say(f"stage {name}: finished in {found}, reused{by}")
            if found != folder:
                link(stage_file(found), stage_file(folder))
                link(found / "stage.json", folder / "stage.json")
            load_trained(model, stage_file(folder), mark)
            checkpoint.clear()  # killed before it was
            return {**record, "reused": found != folder or record.get("reused", False)}
        folder.mkdir(parents=True, exist_ok=True)
        recorder = Record(step.recipe)
        if self.options.fresh:
            checkpoint.clear()
        trainer = self.stage_trainer(name, step, run, [step.recipe, recorder, checkpoint])
        # Before the data is set up, which asks whether the encoder is frozen.
        step.recipe.begin(model)
        newest = checkpoint.newest()
        say(f"stage {name}: " + (f"going on from {newest.name}" if newest else "training"))
        model.strict_loading = False
        trainer.fit(model, datamodule=step.data, ckpt_path=newest, weights_only=True)
        # Not validated at the last step, or killed between that and this.
        if recorder.validated != trainer.global_step and (held := step.data.val_dataloader()):
            trainer.validate(model, held, verbose=False)
        step.recipe.finish(model)
        record = {"name": name, "fingerprint": mark, "parent": before, "reused": False}
        record["git"] = git_commit()
        record |= recorder.summary(trainer) | {"rows_skipped": step.data.skipped}
        if trainer.is_global_zero:
            save_trained(step.recipe.trained(model), stage_file(folder), mark)
            write_record(folder / "stage.json", record)
            checkpoint.clear()
        return record

    def _evaluate(self, model: Llava, run: Run) -> dict[str, Any]:
        """Ask all benchmarks; writes predictions."""
        scores = Scores(run.folder / "predictions")
        if self.datamodule.benchmarks:
            trainer = self._evaluation_trainer(run, scores)
            trainer.test(model, datamodule=self.datamodule, verbose=False)
        benchmarks = {
            name: {key: asdict(score) for key, score in found.items()}
            for name, found in scores.results.items()
        }
        return {
            "benchmarks": benchmarks,
            "answered": scores.counts(),
            "visual_tokens": scores.visual_tokens,
        }

    def _evaluation_trainer(self, run: Run, scores: Scores) -> Trainer:
        options = dict(self.init.trainer)
        return make_trainer(options, run.folder, "evaluation", [scores], Bar("questions"))

    def _finished(self, model: Llava) -> Run:
        """Load what the run's stages have trained."""
        run = self.open_run()
        steps = self.steps()
        for name, step in steps.items():
            step.data.name = name
        for weights, mark in finished_stages(run.folder, steps):
            load_trained(model, weights, mark)
        return run

    def test(self, model: Llava, **_: Any) -> None:
        """Ask the benchmarks of a finished run again."""
        run = self._finished(model)
        before = run.read_results() if run.results.exists() else {"stages": [], "cost": {}}
        kept = {key: before[key] for key in ("stages", "cost")}
        evaluated = self._evaluate(model, run)
        told = {"judges": self.judges(), "asked": self.asked()}
        show(run.finish({**kept, **evaluated, **told}))

    def predict(self, model: Llava, **_: Any) -> None:
        """Answer the benchmarks' questions without scoring them."""
        run = self._finished(model)
        scores = Scores(run.folder / "predictions")
        trainer = self._evaluation_trainer(run, scores)
        trainer.predict(model, datamodule=self.datamodule, return_predictions=False)
        for note in answer_notes({"answered": scores.counts()}):
            say(note)
        run.predicted()
        say(f"answers: {run.folder / 'predictions'}")

    def validate(self, model: Llava, **_: Any) -> None:
        """Loss of a finished run on the rows that its last stage held out."""
        run = self._finished(model)
        name, step = list(self.steps().items())[-1]
        trainer = self.stage_trainer(name, step, run, [step.recipe])
        step.recipe.prepare(model)
        found = trainer.validate(model, datamodule=step.data, verbose=False)
        if not found:
            raise ValueError(f"stages.{name}.data.hold_out is 0: there are no rows to validate on")
        say(f"held-out loss of stage {name}: {found[0]['held_out_loss']:.4f}")


def say(message: str) -> None:
    """One line to the person at the terminal, of the first process of a job."""
    if ranks.first():
        print(f"llava_lab: {message}", flush=True)


def show(path: Path) -> None:
    """The results as a table, and where they are; by the first process of a job."""
    if not ranks.first():
        return
    console = Console()
    for table in results_tables(read_record(path, {}, "`fit` asks the benchmarks again.")):
        console.print(table)
    say(f"results: {path}")
    say(f"curves and samples: tensorboard --logdir {path.parent / 'stages'}")


def with_scale(arguments: list[str]) -> list[str]:
    """Add the tiny scale behind the experiment where no file names a scale.

    Behind a scale's file comes what it says of this experiment alone, in a folder of its name:
    `configs/scale/tiny.yaml`, then `configs/scale/tiny/llava_next_video.yaml`.
    """
    experiment: tuple[int, Path] | None = None
    scale: tuple[int, Path] | None = None
    for place, name in enumerate(arguments[1:], 1):
        path = Path(name)
        text = name.startswith("{")  # of a file, in place of its name
        if arguments[place - 1] not in ("-c", "--config") or text or not path.is_file():
            continue
        known = read_mapping(path)
        if "experiment" in known:
            experiment = (place + 1, path)
        if "scale" in known:
            scale = (place + 1, path)
    if experiment is None or (scale and scale[1] == experiment[1]):
        return arguments
    if scale is None:
        overlay = experiment[1].resolve().parents[1] / TINY
        if not overlay.is_file():
            raise ValueError(f"no -c file names a scale, and the default one is missing: {overlay}")
        say("tiny scale (the default); for the published recipe add -c configs/scale/paper.yaml")
        place = experiment[0]
        arguments = [*arguments[:place], "-c", str(overlay), *arguments[place:]]
        scale = (place + 2, overlay)
    place, path = scale
    own = path.with_suffix("") / experiment[1].name
    return [*arguments[:place], "-c", str(own), *arguments[place:]] if own.is_file() else arguments


# What Lightning tells its developers and a researcher need not read at every start.
QUIET = (
    ".*args parameter is intended",
    ".*in eval mode at the start of training",
    ".*Skipping val loop",
    ".*does not have many workers",
    ".*LeafSpec",
    ".*Total length of `list` across ranks",
    ".*Trying to infer the `batch_size`",
    ".*The number of training batches",
)


def main(arguments: list[str]) -> None:
    """Run one verb."""
    run_cli(LabCLI, arguments)


def run_cli(kind: type[LabCLI], arguments: list[str]) -> None:
    """Run one verb of a command line; a mistake of the user ends in one message."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in QUIET:
        warnings.filterwarnings("ignore", message)
    with one_message():
        kind(
            Llava,
            BenchmarkDataModule,
            args=with_scale(with_references(arguments)),
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_class=LabParser,
            parser_kwargs={"parser_mode": "omegaconf+"},
        )
