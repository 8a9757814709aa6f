"""Options of Slurm's jobs: those of sbatch that submitit takes, from a file and the command line.

partition: gpu          # a launcher's file; names are those of sbatch
time: 4:00:00
gpus_per_node: 1
additional_parameters: {reservation: mine}
"""

import difflib
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from llava_lab.core.yaml_file import read_mapping

REQUEUES = "max_num_timeout"  # as submitit calls it: how often a job may run into its time limit
DEFAULTS: dict[str, Any] = {REQUEUES: 20, "time": 60, "signal_delay_s": 90}
# What the sweep sets itself, and where to say what it should be.
OWN = {
    "job_name": "the sweep finds its jobs by it",
    "dependency": "points wait for the stage that they share",
    "nodes": "say trainer.num_nodes",
    "ntasks_per_node": "a task is started for each device: say trainer.devices",
    "num_gpus": "say gpus_per_node",
    "gpus_per_task": "every task sees all GPUs of its node: say gpus_per_node",
    "array_parallelism": "say --jobs",
    "stderr_to_stdout": "logs are the sweep's",
    "use_srun": "srun starts a task for each device",
}
TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


def read_options(launcher: str, given: Sequence[str]) -> dict[str, Any]:
    """Options of jobs, checked.

    Args:
        launcher: "slurm", or a YAML file that holds options.
        given: More of the form "partition=gpu", which win over the file's.

    Raises:
        ValueError: If submitit or Slurm is not here, or an option is unknown or set by the sweep.
    """
    try:
        from submitit.slurm.slurm import _get_default_parameters
    except ImportError as error:
        raise ValueError(
            "--launcher slurm needs submitit: pip install 'llava-lab[slurm]'"
        ) from error
    if shutil.which("sbatch") is None:
        raise ValueError("--launcher slurm: there is no sbatch here; start it where Slurm is")
    named = {} if launcher == "slurm" else _of_file(Path(launcher))
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            raise ValueError(f"--slurm.{name} needs a value, such as --slurm.{name}=...")
        named[name] = _of_text(value)
    known = {REQUEUES, *_get_default_parameters()}
    found = dict(DEFAULTS)
    for name, value in named.items():
        option = name.replace("-", "_")
        if reason := OWN.get(option):
            raise ValueError(f"slurm.{name} is set by the sweep: {reason}")
        if option not in known:
            near = difflib.get_close_matches(option, known - OWN.keys(), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "it may stand in additional_parameters"
            raise ValueError(f"slurm.{name}: submitit has no option of this name; {hint}")
        found[option] = _checked(option, value)
    return found


def _of_file(path: Path) -> dict[str, Any]:
    """What a file says, every value as it is written: YAML would read 4:00:00 as a number."""
    read_mapping(path)  # refuses what is no mapping
    found = yaml.load(path.read_text(encoding="utf-8-sig"), yaml.BaseLoader)
    return found or {}


def _of_text(text: str) -> Any:
    """A value of the command line; lists and mappings are written as in YAML."""
    return yaml.load(text, yaml.BaseLoader) if text[:1] in ("[", "{") else text


def _checked(name: str, value: Any) -> Any:
    if name == "time":
        return minutes(value)
    if name in ("setup", "teardown", "srun_args"):
        return [value] if isinstance(value, str) else value
    if name == "additional_parameters":
        if not isinstance(value, Mapping):
            raise ValueError(f"slurm.{name} is {value!r}, not names with values under each")
        return {key: _plain(each) for key, each in value.items()}
    if name in ("signal_delay_s", REQUEUES) and not str(value).isdecimal():
        raise ValueError(f"slurm.{name} is {value!r}, not a whole number")
    return _plain(value)


def _plain(value: Any) -> Any:
    if value in ("true", "True"):
        return True
    # An account of "0123" is none of "123".
    return (
        int(value)
        if isinstance(value, str) and value.isdecimal() and str(int(value)) == value
        else value
    )


def minutes(text: Any) -> int:
    """A time limit of sbatch in minutes: "90", "1:30:00", "0-1:30", "90:00".

    Raises:
        ValueError: If it is none.
    """
    found = TIME.fullmatch(str(text))
    if found is None:
        raise ValueError(f"slurm.time is {text!r}; write minutes, 4:00:00 or 1-12:00:00")
    days, *rest = (int(part or 0) for part in found.groups())
    if found["days"] is not None or found["third"] is not None:
        hours, minute, second = rest  # from hours on
    else:
        hours, minute, second = 0, rest[0], rest[1]
    total = (days * 24 + hours) * 60 + minute + (second > 0)
    if not total:
        raise ValueError(f"slurm.time is {text!r}, which is no time")
    return total


def resources(trainer: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Nodes, tasks and GPUs of a job, of which each task is the process of one device.

    Args:
        trainer: Options of its trainer.
        options: Options of jobs.

    Raises:
        ValueError: If both say how many GPUs there are, and differ.
    """
    devices, named = trainer["devices"], options.get("gpus_per_node")
    number = str(named).rpartition(":")[2]  # "a100:4"
    if named is not None and not number.isdecimal():
        raise ValueError(f"slurm.gpus_per_node is {named!r}, not a number such as 4 or a100:4")
    gpus = None if named is None else int(number)
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        devices = len(devices)
    if devices in ("auto", -1, "-1"):
        devices = gpus or 1
    if not str(devices).isdecimal():
        raise ValueError(f"trainer.devices is {devices!r}: say how many a job of Slurm is to have")
    if gpus is not None and gpus != int(devices) and trainer["accelerator"] != "cpu":
        raise ValueError(
            f"slurm.gpus_per_node is {named}, and trainer.devices is {devices}: a task is started "
            "for each device, so let them be the same"
        )
    found = {"nodes": int(trainer["num_nodes"]), "ntasks_per_node": int(devices)}
    elsewhere = f"{options.get('gres')} {options.get('additional_parameters')}"
    if trainer["accelerator"] in ("gpu", "cuda") and gpus is None and "gpu" not in elsewhere:
        found["gpus_per_node"] = int(devices)
    return found
