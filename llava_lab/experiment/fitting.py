"""Fitting: the stages of an experiment, found finished or trained in order, and then evaluated."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import seed_everything
from lightning.pytorch import Callback, Trainer

from llava_lab.core.atomic import link
from llava_lab.core.checkout import git_commit
from llava_lab.core.progress import say
from llava_lab.core.records import write_record
from llava_lab.evaluate.scores import Scores
from llava_lab.experiment import idle, watch
from llava_lab.experiment.build import Parts, build, make_worlds
from llava_lab.experiment.fingerprints import benchmark_fingerprints, stage_fingerprints
from llava_lab.experiment.run import (
    STAGE_KEYS,
    Preview,
    Run,
    finished_stages,
    peak_memory,
    read_stage,
)
from llava_lab.train.checkpoint import StageCheckpoint
from llava_lab.train.record import Bar, Record, run_cost
from llava_lab.train.stage import Stage
from llava_lab.train.stage_weights import load_trained, save_trained, stage_file
from llava_lab.train.trainer import make_trainer, probe


class Fitting:
    """Trains, finds and evaluates one experiment.

    Args:
        options: The experiment's options, checked.
        run: Its run.
        fresh: Train every stage anew, reuse nothing.
        checkpoint_seconds: Time between checkpoints.
    """

    def __init__(
        self, options: Namespace, run: Run, fresh: bool = False, checkpoint_seconds: float = 60.0
    ):
        self.options, self.run, self.fresh = options, run, fresh
        self.checkpoint_seconds = checkpoint_seconds
        self.used = False

    @cached_property
    def parts(self) -> Parts:
        """The model, stages and benchmarks; tiny worlds that they read are made first."""
        make_worlds(self.options)
        return build(self.options)

    def _begin(self, training: bool = False) -> None:
        """Build the parts, and set the seed, which another experiment may have set since.

        Args:
            training: Whether the model's weights are about to be changed.

        Raises:
            ValueError: If they were changed before: fingerprints are those of untrained weights.
        """
        if self.used:
            raise ValueError("this Fitting has changed its model; experiment.fitting() is another")
        self.used = training
        _ = self.parts
        seed_everything(self.options.seed_everything, workers=True, verbose=False)

    @cached_property
    def probe(self) -> Trainer:
        """A trainer that knows the devices, and trains nothing."""
        return probe(self.parts.trainer)

    def stages(self, last: str | None = None) -> dict[str, Stage]:
        """The stages, up to one.

        Args:
            last: Name of that one, or None for all.

        Raises:
            ValueError: If there is no stage of that name.
        """
        stages = self.parts.stages
        if last is None:
            return stages
        if last not in stages:
            raise ValueError(f"stage: there is no stage {last!r} among {', '.join(stages)}")
        names = list(stages)
        return {name: stages[name] for name in names[: names.index(last) + 1]}

    def fingerprints(self, stages: dict[str, Stage]) -> dict[str, str]:
        """Fingerprint of every stage; reads and checks all data before anything is spent."""
        for stage in stages.values():
            stage.data.check(self.parts.model)
        self.parts.benchmarks.check(self.parts.model)
        for stage in stages.values():
            watch.check_read(stage, self.parts)
        return stage_fingerprints(self.options, self.parts.model, stages, self.probe)

    @cached_property
    def benchmark_fingerprints(self) -> dict[str, str]:
        """Fingerprint of what each benchmark asks and of how it is asked and scored."""
        return benchmark_fingerprints(self.options, self.parts.benchmarks)

    def preview(self, last: str | None = None) -> Preview:
        """What `fit` would do; data is read and checked, nothing is trained.

        Args:
            last: Stage after which it would stop, or None.
        """
        self._begin()
        return self._preview(self._check(last), last)

    def _check(self, last: str | None) -> dict[str, str]:
        """Check everything that can be checked before; fingerprints of the stages."""
        stages = self.stages(last)
        for stage in stages.values():
            stage.check_keys(self.parts.model)
            watch.check(stage, self.parts.benchmarks)
        return self.fingerprints(stages)

    def _preview(self, fingerprints: dict[str, str], last: str | None) -> Preview:
        finished = None
        if not (self.fresh or last):
            finished = self.run.finished(fingerprints, self.benchmark_fingerprints)
        found = {n: self._find(self.parts.stages[n], each) for n, each in fingerprints.items()}
        ends = {n: watch.ending(self.parts.stages[n], self.parts.trainer) for n in fingerprints}
        return Preview(found, finished, fingerprints, ends)

    def _find(self, stage: Stage, fingerprint: str) -> Path | None:
        """Folder of a finished stage that may be reused."""
        asked = {} if stage.evaluate_every is None else self.benchmark_fingerprints
        suits = partial(watch.suits, stage, asked)
        return None if self.fresh else self.run.find(fingerprint, suits)

    def fit(self, last: str | None = None) -> Run:
        """Train the stages that are not finished yet, evaluate, and write the results.

        Args:
            last: Stage after which to stop, without evaluation; or None.
        """
        began = time.monotonic()
        self._begin(training=True)
        run, model = self.run, self.parts.model
        say(f"run {run.folder}")
        fingerprints = self._check(last)
        found = self._preview(fingerprints, last)
        if found.results:
            run.begin()
            say("finished before; `test` asks the benchmarks again, `--fresh` trains anew")
            return run
        stages = self.stages(last)
        idle.say_idle(self.options, self.parts, stages)
        for name, stage in stages.items():
            if found.stages[name] is None:
                stage.check(model, self.parts.trainer)
                stage.check_split(model, self.probe)
        run.begin()
        records: list[dict[str, Any]] = []
        before = None
        for name, stage in stages.items():
            with run.stage_lock(fingerprints[name], name):
                records.append(self._stage(stage, fingerprints[name], before))
            before = fingerprints[name]
        if last is not None:
            say(f"stopped after stage {last}: {run.folder}")
            return run
        evaluated = self._evaluate()
        seconds = round(time.monotonic() - began, 2)
        cost = {**run_cost(model, stages, records, seconds), "peak_memory_bytes": peak_memory()}
        summaries = [{k: record[k] for k in STAGE_KEYS if k in record} for record in records]
        run.finish({"stages": summaries, **evaluated, "cost": cost})
        return run

    def _stage(self, stage: Stage, fingerprint: str, before: str | None) -> dict[str, Any]:
        """Find one stage finished, or train it to its end; its weights are in the model after."""
        if (found := self._find(stage, fingerprint)) is not None:
            return self._reuse(stage, fingerprint, found)
        folder, model = self.run.stage(stage.name), self.parts.model
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = StageCheckpoint(folder, fingerprint, stage, self.checkpoint_seconds)
        recorder = Record(stage)
        watching = watch.Watch(stage, folder, fingerprint, recorder)
        watching.ask(self.parts.benchmarks, lambda: self.benchmark_fingerprints)
        if self.fresh:
            checkpoint.clear()
        trainer = self._stage_trainer(stage, [recorder, *watching.callbacks, checkpoint])
        # Before the data is set up, which asks whether the encoder is frozen.
        stage.begin(model)
        newest = checkpoint.newest()
        watching.begin(newest, self.parts.trainer)
        model.strict_loading = False
        trainer.fit(model, datamodule=stage.data, ckpt_path=newest, weights_only=True)
        # Not validated at the last step, or killed between that and this.
        if recorder.validated != trainer.global_step and (held := stage.data.val_dataloader()):
            trainer.validate(model, held, verbose=False)
        if stage.name != list(self.parts.stages)[-1]:  # at whose end all benchmarks are asked
            watching.end(trainer, model)
        stage.finish(model)
        record = {"name": stage.name, "fingerprint": fingerprint, "parent": before, "reused": False}
        record |= {"git": git_commit(), "rows_skipped": stage.data.skipped}
        record |= recorder.summary(trainer) | watching.summary(model)
        if trainer.is_global_zero:
            save_trained(stage.trained(model), stage_file(folder), fingerprint)
            write_record(folder / "stage.json", record)
            checkpoint.clear()
        return record

    def _reuse(self, stage: Stage, fingerprint: str, found: Path) -> dict[str, Any]:
        """Load a finished stage, and keep it beside this run's others."""
        folder, record = self.run.stage(stage.name), read_stage(found)
        other = record["git"] != git_commit()
        by = f" (trained by commit {record['git']})" if other else ""
        say(f"stage {stage.name}: finished in {found}, reused{by}")
        if found != folder:
            link(stage_file(found), stage_file(folder))
            watch.link_kept(stage, record, found, folder)
            link(found / "stage.json", folder / "stage.json")
        load_trained(self.parts.model, stage_file(folder), fingerprint)
        StageCheckpoint(folder, fingerprint, stage, 0.0).clear()  # killed before it was
        return {**record, "reused": found != folder or record.get("reused", False)}

    def _stage_trainer(self, stage: Stage, others: Sequence[Callback] = ()) -> Trainer:
        options, own = {**self.parts.trainer, **stage.trainer_options}, [stage, *others]
        trainer = make_trainer(options, self.run.folder, stage.name, own, Bar(stage.name))
        trainer.accumulate_grad_batches = stage.data.accumulate(trainer.world_size)
        stage.data.take_limits(trainer)
        return trainer

    def _evaluation_trainer(self, scores: Scores) -> Trainer:
        folder, bar = self.run.folder, Bar("questions")
        return make_trainer(self.parts.trainer, folder, "evaluation", [scores], bar)

    def _evaluate(self) -> dict[str, Any]:
        """Ask all benchmarks; writes predictions."""
        scores, data = Scores(self.run.folder / "predictions"), self.parts.benchmarks
        if data.benchmarks:
            self._evaluation_trainer(scores).test(self.parts.model, datamodule=data, verbose=False)
        benchmarks = {
            name: {key: asdict(score) for key, score in found.items()}
            for name, found in scores.results.items()
        }
        judges = {each.name: each.metric.settings() for each in data.benchmarks}
        return {
            "benchmarks": benchmarks,
            "answered": scores.counts(),
            "visual_tokens": scores.visual_tokens,
            "judges": {name: settings for name, settings in judges.items() if settings},
            "benchmark_fingerprints": self.benchmark_fingerprints,
        }

    def _load(self) -> None:
        """Load what the run's stages have trained into the model.

        Raises:
            ValueError: If a stage is not finished.
        """
        self._begin(training=True)
        for weights, fingerprint in finished_stages(self.run.folder, self.parts.stages):
            load_trained(self.parts.model, weights, fingerprint)

    def test(self) -> Run:
        """Ask the benchmarks of a finished run again, and write the results."""
        self._load()
        run = self.run
        before = run.results if run.results_file.exists() else {"stages": [], "cost": {}}
        run.check_stages(before["stages"])
        run.finish({**{key: before[key] for key in ("stages", "cost")}, **self._evaluate()})
        return run

    def predict(self) -> dict[str, dict[str, Any]]:
        """Answer the benchmarks' questions without scoring them; counts of the answers."""
        self._load()
        scores = Scores(self.run.folder / "predictions")
        trainer = self._evaluation_trainer(scores)
        data = self.parts.benchmarks
        trainer.predict(self.parts.model, datamodule=data, return_predictions=False)
        self.run.predicted()
        return scores.counts()

    def validate(self) -> tuple[str, float]:
        """Name of the last stage and its loss on the rows that it held out.

        Raises:
            ValueError: If it held out none.
        """
        self._load()
        name, stage = list(self.parts.stages.items())[-1]
        trainer = self._stage_trainer(stage)
        stage.prepare(self.parts.model)
        found = trainer.validate(self.parts.model, datamodule=stage.data, verbose=False)
        if not found:
            raise ValueError(f"stages.{name}.data.hold_out is 0: there are no rows to validate on")
        return name, found[0]["held_out_loss"]
