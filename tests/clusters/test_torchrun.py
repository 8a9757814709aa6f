"""Commands of the page on clusters that torchrun starts: they go on after a signal to one agent."""

import shlex
import signal
import socket
import subprocess
from pathlib import Path

import pages
import pause
import pytest
import slurm
from conftest import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def start(lines: list[str], world: Path, runs: Path, **more: str) -> list[subprocess.Popen]:
    """Start commands side by side, on a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    commands = [shlex.split(line.replace("29500", port)) for line in lines]
    return [
        subprocess.Popen(
            [*command, *pages.options(world), f"--runs={runs}"],
            cwd=REPOSITORY,
            env=pages.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]


def ends(agents: list[subprocess.Popen]) -> tuple[list[int], str]:
    """Statuses of commands at their end, and what they have said."""
    said = [agent.communicate(timeout=slurm.PATIENCE_SECONDS)[0] for agent in agents]
    return [agent.returncode for agent in agents], "\n".join(said)


def test_torchrun_on_one_node_and_on_two_goes_on_after_a_signal_to_the_same_weights(
    small_world: Path, tmp_path: Path
) -> None:
    one, *two = pages.commands("torchrun ")
    assert len(two) == 2
    statuses, said = ends(start([one], small_world, tmp_path / "whole"))
    assert statuses == [0], said
    for name, lines, number in (
        ("one", [one], signal.SIGTERM),
        ("two", two, signal.SIGINT),
    ):
        folder = tmp_path / name
        folder.mkdir()
        agents = start(lines, small_world, folder / "runs", **{pause.FOLDER: str(folder)})
        slurm.wait(
            lambda folder=folder, agents=agents: (
                (folder / "waits-0").exists() or any(agent.poll() is not None for agent in agents)
            ),
            "rank 0 waits in the middle of a stage",
        )
        agents[0].send_signal(number)
        statuses, said = ends(agents)
        assert all(statuses) and "interrupted and saved at step 5" in said, said
        assert "llava_lab: a fault" not in said
        statuses, said = ends(start(lines, small_world, folder / "runs"))
        assert not any(statuses) and "going on from step-00000005" in said, said
        assert pages.weights(folder / "runs") == pages.weights(tmp_path / "whole"), name
    assert len(pages.weights(tmp_path / "whole")) == 1
