"""What the cases in Python share."""

import os
import subprocess
import sys

SHELL = "/usr/lib/recuse/recuse-shell"


def act() -> None:
    """Do what ought to be accounted for."""
    print("ACTED-" + os.path.basename(sys.argv[0]), flush=True)


def relay() -> int:
    """Say which process records this session: there is no other when cases run."""
    return int(subprocess.check_output(["pgrep", "-u", "recuse", "-x", "recuse-shell"]))


def outer() -> str:
    """Name the terminal that the recorder has from sshd."""
    words = ["ps", "-o", "tty=", "-p", str(relay())]
    return "/dev/" + subprocess.check_output(words, text=True).strip()
