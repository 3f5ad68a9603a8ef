"""Runs of an experiment, many at a time.

Every run is a directory of --out; one that has a result.json is done, one that was interrupted goes
on where it was saved. A run may begin with the checkpoint of another one, its parent.
"""
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Run:
    """What is trained: a configuration of this folder, with settings, from a parent's checkpoint."""

    def __init__(self, name, config, settings, facts, parent=None, prepare=None, evaluate=None):
        self.name = name
        self.config = config      # a file beside this one
        self.settings = settings  # field: value
        self.facts = facts        # goes into result.json
        self.parent = parent      # the name of a run
        self.prepare = prepare    # (parent's directory, directory to make): a command, or a copy is made
        self.evaluate = evaluate  # (directory): a command that prints one JSON object


class Laboratory:
    """Starts runs as their parents finish, at most --jobs at a time, until --seconds are over."""

    def __init__(self, options):
        self.options = options
        self.out = Path(options.out).resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.deadline = time.monotonic() + options.seconds
        self.tessera = str(Path(options.tessera).resolve())
        self.running = {}  # process: run
        self.failed = set()

    def result_path(self, run):
        return self.out / run / "result.json"

    def results(self):
        """Of every run that is done."""
        return [json.loads(path.read_text()) for path in sorted(self.out.glob("*/result.json"))]

    def start(self, run):
        """Starts the shell that makes the directory of a run, trains, and evaluates."""
        home = self.out / run.name
        lines = []
        if run.parent and not (home / "checkpoints").exists():
            shutil.rmtree(home, ignore_errors=True)
            if run.prepare:
                lines.append(shlex.join(run.prepare(self.out / run.parent, home)))
            else:
                newest = sorted((self.out / run.parent / "checkpoints").glob("step-*"))[-1]
                copy = self.out / f"{run.name}.part"
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(newest, copy / "checkpoints" / newest.name)
                copy.rename(home)
        train = [self.tessera, "train", str(HERE / run.config)]
        for field, value in ({"run_dir": home} | run.settings).items():
            train += ["--set", f"{field}={value}"]
        lines.append(f"TIMEFORMAT='%U %S'; {{ time {shlex.join(train)} ; }} 2>&1")
        log = self.out / f"{run.name}.log"
        script = " && ".join(f"{{ {line} ; }} >>{shlex.quote(str(log))} 2>&1" for line in lines)
        if run.evaluate:
            script += (f" && {shlex.join(run.evaluate(home))} >{shlex.quote(str(home / 'scores.json'))}"
                       f" 2>>{shlex.quote(str(log))}")
        run.command, run.began = shlex.join(train), time.monotonic()
        process = subprocess.Popen(["bash", "-c", script], start_new_session=True)
        self.running[process] = run

    def finish(self, process):
        run = self.running.pop(process)
        home, log = self.out / run.name, self.out / f"{run.name}.log"
        if process.returncode != 0:
            if time.monotonic() < self.deadline:
                print(f"{run.name} failed with {process.returncode}; see {log}", flush=True)
                self.failed.add(run.name)
            return
        steps = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
        result = run.facts | {"name": run.name, "seconds": round(time.monotonic() - run.began, 1),
                              "cpu_seconds": processor_seconds(log), "steps": steps[-1]["step"],
                              "validation_loss": steps[-1].get("validation_loss"),
                              "command": run.command}
        if run.evaluate:
            result["scores"] = json.loads((home / "scores.json").read_text())
        part = home / "result.json.part"
        part.write_text(json.dumps(result, indent=1))
        part.rename(self.result_path(run.name))
        print(f"{run.name}: {self.in_words(result)} in {result['seconds']} s", flush=True)

    def in_words(self, result):
        return result.get("scores") or f"validation loss {result['validation_loss']}"

    def stop_all(self):
        """Asks what still runs to save itself."""
        for process in self.running:
            os.killpg(process.pid, signal.SIGTERM)
        for process in list(self.running):
            process.wait()  # the shell; the program that it ran is still saving
            until = time.monotonic() + 15
            while group_lives(process.pid) and time.monotonic() < until:
                time.sleep(0.1)
            if group_lives(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
            self.finish(process)

    def run(self, runs):
        """Those that are not done, in their order as far as parents allow it."""
        waiting = [run for run in runs if not self.result_path(run.name).exists()]
        while waiting or self.running:
            for run in list(waiting):
                if len(self.running) >= self.options.jobs:
                    break
                if run.parent is None or self.result_path(run.parent).exists():
                    waiting.remove(run)
                    self.start(run)
            if not self.running:
                break  # what waits has a parent that failed
            time.sleep(0.2)
            for process in [p for p in self.running if p.poll() is not None]:
                self.finish(process)
            if time.monotonic() > self.deadline:
                print("time is over", flush=True)
                self.stop_all()
                break


def group_lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def processor_seconds(log):
    """What `time` has said in a log: user and system, of every start."""
    total = 0.0
    for line in log.read_text().splitlines():
        words = line.split()
        if len(words) == 2 and all(word.replace(".", "", 1).isdigit() for word in words):
            total += float(words[0]) + float(words[1])
    return round(total, 1)


def machine():
    model = platform.processor()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":")[1].strip()
                break
    except OSError:
        pass
    return f"{model}, {os.cpu_count()} cores"


def common_options(parser):
    parser.add_argument("--tessera", required=True, help="the program")
    parser.add_argument("--out", required=True, help="directory of all runs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop and save after these")
    parser.add_argument("--device", default="CPU", choices=["CPU", "GPU"])
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--variants", help="only these")
    parser.add_argument("--report", action="store_true", help="only write the table")


def write_report(laboratory, table):
    """DIR/results.json and DIR/results.md of every finished run; the table is printed, too."""
    results = laboratory.results()
    (laboratory.out / "results.json").write_text(
        json.dumps({"machine": machine(), "runs": results}, indent=1) + "\n")
    (laboratory.out / "results.md").write_text(table(results))
    print(table(results))
