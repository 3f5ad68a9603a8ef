"""What the steps of tests/gpu/run.py share: where programs and libraries are, commands with a time
limit, the log, and results.json, which is written again after every step."""

import datetime
import glob
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
NVIDIA_LIBRARIES = ["libcublasLt.so*", "libcudnn.so*", "libnccl.so*"]


class Finished:
    """How a command ended: code is None when it was stopped at its time limit."""

    def __init__(self, code, output, seconds):
        self.code, self.output, self.seconds = code, output, seconds

    def how(self):
        if self.code is None:
            return "stopped at its time limit"
        if self.code < 0:
            return f"ended by {signal.Signals(-self.code).name}"
        return f"exit code {self.code}"


class Session:
    def __init__(self, build, out, seconds, quick):
        self.quick = quick
        self.deadline = time.monotonic() + seconds
        self.out = pathlib.Path(out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.log_path = self.out / "steps.log"
        self.log_path.write_text("")
        self.build = self.find_build(build)
        self.pack = (self.build / "bin").is_dir()
        self.environment = self.make_environment()
        self.results = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                        "mode": "quick" if quick else "full", "build": self.build_facts(),
                        "steps": [], "measurements": []}

    # Places.

    @staticmethod
    def find_build(given):
        """The folder that was asked for; or the pack, out of its archive when that is newer than
        the last time (pack.sh leaves both, and the folder without `unpacked`); or the build."""
        if given:
            return pathlib.Path(given).resolve()
        pack = ROOT / "build" / "gpu_pack"
        archive, unpacked = ROOT / "build" / "gpu_pack.tar.xz", pack / "unpacked"
        if archive.exists():
            stamp = f"{archive.stat().st_size} {archive.stat().st_mtime_ns}"
            if not pack.exists() or (unpacked.exists() and unpacked.read_text() != stamp):
                shutil.rmtree(pack, ignore_errors=True)
                safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
                with tarfile.open(archive, "r:xz") as packed:
                    packed.extractall(pack.parent, **safe)
                unpacked.write_text(stamp)
        return pack if pack.exists() else ROOT / "build" / "cuda"

    def program(self, name):
        """The path of a program of ours, or None."""
        if self.pack:
            path = self.build / "bin" / name
            return str(path) if path.exists() else None
        for path in self.build.rglob(name):
            if path.is_file() and os.access(path, os.X_OK):
                return str(path)
        return None

    @staticmethod
    def tool(name):
        """The path of a tool of NVIDIA's, or None."""
        places = ["/usr/local/cuda*/bin", "/usr/local/cuda*/compute-sanitizer",
                  "/usr/local/nvidia/bin", "/opt/nvidia/*/*/bin"]
        for folder in (folder for place in places for folder in sorted(glob.glob(place))):
            if os.access(f"{folder}/{name}", os.X_OK):
                return shutil.which(name) or f"{folder}/{name}"
        return shutil.which(name)

    @staticmethod
    def library_folders():
        """Folders with NVIDIA's libraries that the pack leaves out."""
        places = ["/usr/local/cuda*/lib64", "/usr/local/cuda*/targets/x86_64-linux/lib",
                  "/usr/lib/x86_64-linux-gnu", "/usr/local/nvidia/lib64"]
        for python in [pathlib.Path(path) for path in sys.path if path.endswith("-packages")]:
            places += [str(python / "nvidia" / "*" / "lib"), str(python / "nvidia" / "*" / "*" / "lib")]
        folders = []
        for folder in (folder for place in places for folder in sorted(glob.glob(place))):
            if any(glob.glob(f"{folder}/{name}") for name in NVIDIA_LIBRARIES):
                folders.append(folder)
        return folders

    def make_environment(self):
        """For our own programs. Other programs get the one that run.sh was started in."""
        environment = dict(os.environ)
        folders = [str(self.build / "lib")] if self.pack else []
        if "LD_LIBRARY_PATH" in environment:
            folders.append(environment["LD_LIBRARY_PATH"])
        environment["LD_LIBRARY_PATH"] = ":".join(folders + self.library_folders())
        environment.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                           OMPI_MCA_rmaps_base_oversubscribe="1", OMPI_MCA_btl="self,vader,tcp",
                           OMPI_MCA_hwloc_base_binding_policy="none", GTEST_COLOR="no")
        if self.pack and (self.build / "lib" / "openmpi").is_dir():
            environment.update(OPAL_PREFIX=str(self.build), OPAL_BINDIR=str(self.build / "bin"),
                               OPAL_PKGLIBDIR=str(self.build / "lib" / "openmpi"),
                               OPAL_LIBDIR=str(self.build / "lib"),
                               OPAL_PKGDATADIR=str(self.build / "share"),
                               OPAL_SYSCONFDIR=str(self.build / "share"))
        return environment

    def build_facts(self):
        if self.pack:
            return json.loads((self.build / "build.json").read_text())
        commit = self.quiet(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
        return {"commit": commit.strip()}

    # Commands.

    def left(self):
        return self.deadline - time.monotonic()

    def run(self, command, limit, ours=True, **environment):
        """Runs a command with a time limit in seconds, and no longer than the whole session has."""
        begin = time.monotonic()
        variables = {**(self.environment if ours else os.environ), **environment}
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                       stdin=subprocess.DEVNULL, cwd=ROOT, env=variables, text=True,
                                       errors="replace", start_new_session=True)
        except OSError as error:
            return Finished(127, str(error), 0)
        try:
            output, _ = process.communicate(timeout=max(1, min(limit, self.left())))
            code = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            code = None
        return Finished(code, output, time.monotonic() - begin)

    @staticmethod
    def quiet(command):
        """What a command prints; nothing when it cannot be run."""
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
        except (OSError, subprocess.TimeoutExpired):
            return ""

    # Results.

    def log(self, text):
        with self.log_path.open("a") as log:
            log.write(text.rstrip("\n") + "\n")

    def log_run(self, title, done):
        self.log(f"---- {title}: {done.how()}, {done.seconds:.1f} s\n{done.output}")

    def step(self, name, action):
        """Runs one step: `action` returns (result, detail, facts)."""
        begin = time.monotonic()
        self.log(f"\n==== {name}")
        if self.left() < 3:
            result, detail, facts = "skipped", "no time was left", {}
        else:
            try:
                result, detail, facts = action()
            except Exception as error:  # the next step may still work
                result, detail, facts = "failed", f"{type(error).__name__}: {error}", {}
        seconds = round(time.monotonic() - begin, 1)
        entry = {"step": name, "result": result, "detail": detail, "seconds": seconds, **facts}
        self.results["steps"].append(entry)
        line = f"{name}: {result} ({seconds} s) {detail}"
        self.log(f"==== {line}")
        print(line, flush=True)
        self.save()

    def add_measurements(self, lines):
        """Later lines of the same name, shape and program replace earlier ones that failed."""
        for line in lines:
            key = (line.get("by"), line.get("name"), line.get("shape"))
            same = [old for old in self.results["measurements"]
                    if (old.get("by"), old.get("name"), old.get("shape")) == key]
            if same and "error" in line:
                continue
            for old in same:
                self.results["measurements"].remove(old)
            self.results["measurements"].append(line)

    def save(self):
        path = self.out / "results.json"
        path.with_suffix(".new").write_text(json.dumps(self.results, indent=1) + "\n")
        path.with_suffix(".new").replace(path)


def json_lines(text):
    """The lines of `text` that are JSON objects."""
    found = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except ValueError:
                pass
    return found


def natural_cuda(smi_text):
    """The CUDA version that the driver offers, of what nvidia-smi prints."""
    match = re.search(r"CUDA Version: ([\d.]+)", smi_text)
    return match[1] if match else ""
