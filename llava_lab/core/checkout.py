"""Checkout: the commit of the code that runs, and files as a commit has them."""

import hashlib
import subprocess
from pathlib import Path


def git_commit() -> str | None:
    """Commit of the code, with a plus where files differ from it; None outside a checkout.

    Files under results/ are no code: runs write them. Code that is installed below another
    checkout, such as in a virtual environment there, is not of its commits.
    """
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = _git("rev-parse", "HEAD")
    status = ("status", "--porcelain", "--untracked-files=no")
    changed = _git(*status, "--", ":/", ":(exclude,top)results")
    return commit and commit + ("+" if changed else "")


def sha256_at(commit: str, path: Path) -> str | None:
    """Hash of a file as a commit of its checkout has it; None where that is not known.

    Args:
        commit: The commit.
        path: The file.
    """
    command = ["git", "-C", str(path.parent), "show", f"{commit}:./{path.name}"]
    try:
        content = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return hashlib.sha256(content).hexdigest()


def _git(*arguments: str) -> str | None:
    """What git says of the checkout that this package is in; None where it is in none."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
