"""Runs the program under test."""

import os
import subprocess
import sys

LAUNCHERS = ("OMPI_", "PMIX_", "SLURM_")


class Program:
    def __init__(self, path):
        self.path = os.path.abspath(path)
        self.environment = {
            k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS)
        } | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

    def start(self, *arguments, before=(), **options):
        """The finished process, whatever its exit code. `before` is put in front: mpirun."""
        return subprocess.run([*before, self.path, *map(str, arguments)], env=self.environment,
                              capture_output=True, text=True, timeout=120, **options)

    def run(self, *arguments, before=(), code=0):
        """What it says, after it has ended with `code`."""
        done = self.start(*arguments, before=before)
        if done.returncode != code:
            sys.exit(f"tessera {arguments} returned {done.returncode}, expected {code}: "
                     f"{done.stdout}{done.stderr}")
        return done.stdout + done.stderr
