"""GoogleTest programs on a GPU. Every suite is a process of its own, several at a time: a kernel that
stops the GPU for its process then hides no other suite, and in a suite that failed every test that
did not pass is run once more by itself."""

import concurrent.futures
import fnmatch
import json
import os
import re
import time

from session import ROOT

KEPT = ROOT / "docs" / "benchmarks" / "gpu.json"  # of the last whole run
PROCESSES = 4
CHECKERS = min(16, max(PROCESSES, os.cpu_count() or 1))  # compute-sanitizer waits for the processor
SUITE_SECONDS = 45  # of one suite, at most


def listed(session, program):
    """{suite: [test, ...]} of a GoogleTest program."""
    done = session.run([program, "--gtest_list_tests"], 60)
    found, suite = {}, None
    for line in done.output.splitlines():
        name = line.split("#")[0].rstrip()
        if re.fullmatch(r"\S+\.", name):
            suite = name[:-1]
        elif suite and re.fullmatch(r"  \S+", name) and "DISABLED_" not in name:
            found.setdefault(suite, []).append(name.strip())
    if not found:
        session.log_run(f"{program} --gtest_list_tests", done)
    return found


def passed_tests(output):
    return set(re.findall(r"^\[       OK \] (\S+)", output, re.M))


def skipped_tests(output):
    return set(re.findall(r"^\[  SKIPPED \] (\S+\.\S+)", output, re.M))


def run_filters(session, command, filters, limit, end, processes=None):
    """Runs `command` once for each filter: {filter: Finished}, without those it has no time for."""
    environment = {"CUDA_LAUNCH_BLOCKING": "1"}

    def one(tests):
        if time.monotonic() > end:
            return tests, None
        left = max(1, min(limit, end - time.monotonic()))
        return tests, session.run([*command, f"--gtest_filter={tests}"], left, **environment)

    with concurrent.futures.ThreadPoolExecutor(processes or PROCESSES) as pool:
        return {tests: done for tests, done in pool.map(one, filters) if done is not None}


def run(session, name, limit):
    program = session.program(name)
    if program is None:
        return "skipped", f"{name} is not in the build", {}
    end = time.monotonic() + min(limit, session.left())
    tests = listed(session, program)
    if not tests:
        return "failed", f"{name} lists no tests", {}
    runs = run_filters(session, [program], [f"{suite}.*" for suite in tests],
                       min(limit, SUITE_SECONDS), end)
    passed, skipped, again, late = set(), set(), [], []
    for suite, names in tests.items():
        done = runs.get(f"{suite}.*")
        if done is None:
            late.append(suite)
            continue
        good = passed_tests(done.output)
        passed |= good
        skipped |= skipped_tests(done.output)
        if done.code != 0:
            session.log_run(f"{name} {suite}", done)
            again += [full for full in (f"{suite}.{test}" for test in names)
                      if full not in good | skipped]
    alone = run_filters(session, [program], again[:60], 30, end)
    failed = []
    for full in again:
        done = alone.get(full)
        if done is not None and done.code == 0:
            passed.add(full)  # another test of its suite had stopped the GPU
            continue
        failed.append(full)
        if done is not None:
            session.log_run(f"{name} {full} alone", done)
    count = sum(map(len, tests.values()))
    detail = f"{len(passed)} of {count} tests passed"
    if skipped:
        detail += f", {len(skipped)} skipped themselves"
    if failed:
        detail += f"; failed: {', '.join(failed[:12])}" + (" ..." if len(failed) > 12 else "")
    if late:
        detail += f"; no time for {len(late)} of {len(tests)} suites"
    facts = {"tests": count, "passed": len(passed), "skipped": sorted(skipped),
             "failed": failed, "late": late}
    result = "failed" if failed or late else "passed" if passed else "skipped"
    return result, detail, facts


def unfinished(kept, tool):
    """The suites that `tool` did not come to the end of when it last ran, as kept in the results."""
    if not kept.exists():
        return []
    steps = json.loads(kept.read_text()).get("steps", [])
    return next((step.get("unchecked", []) for step in steps if step["step"] == tool), [])


def chosen_suites(tests, patterns, late):
    """The suites of `tests` that one of the patterns fits; `unfinished` fits those in `late`."""
    found = [suite for suite in tests for pattern in patterns
             if (suite in late if pattern == "unfinished" else fnmatch.fnmatchcase(suite, pattern))]
    return list(dict.fromkeys(found))


def checked(done):
    """Of one run under compute-sanitizer: clean, reports or stopped."""
    if done is None or done.code is None:
        return "stopped"
    if done.code == 99 or re.search(r"ERROR SUMMARY: [1-9]", done.output):
        return "reports"
    good = "ERROR SUMMARY: 0" in done.output or "0 hazards displayed" in done.output
    return "clean" if good else "stopped"


def sanitize(session, tool, limit, patterns=None, processes=CHECKERS):
    """compute-sanitizer over the suites of kernels_test, as many as there is time for, and first those
    for which there never was. With `patterns` over these suites alone, test by test."""
    sanitizer, program = session.tool("compute-sanitizer"), session.program("kernels_test")
    if sanitizer is None or program is None:
        return "skipped", "compute-sanitizer or kernels_test is not here", {}
    end = time.monotonic() + min(limit, session.left())
    tests = listed(session, program)
    late = unfinished(KEPT, tool)
    if patterns:
        suites = chosen_suites(tests, patterns, late)
        units = [f"{suite}.{test}" for suite in suites for test in tests[suite]]
        if not units:
            return "failed", f"kernels_test has no suite {', '.join(patterns)}", {}
    else:
        suites = sorted(tests, key=lambda suite: suite not in late)
        units = [f"{suite}.*" for suite in suites]
    command = [sanitizer, "--tool", tool, "--error-exitcode", "99", "--print-limit", "20"]
    # That suite provokes an error of the runtime, to see that it is survived.
    quiet = [unit for unit in units if unit.startswith("WorkGraph.")]
    others = [unit for unit in units if unit not in quiet]
    runs = {}
    for some, more in [(quiet, ["--report-api-errors", "no"]), (others, [])]:
        runs |= run_filters(session, [*command, *more, program], some,
                            limit if patterns else limit / 2, end, processes)
    outcome = {"clean": [], "reports": [], "stopped": []}
    for unit in units:
        done = runs.get(unit)
        outcome[checked(done)].append(unit.removesuffix(".*"))
        if done is not None and checked(done) != "clean":
            session.log_run(f"{tool} {unit}", done)
    clean, reports, stopped = outcome.values()
    detail = f"{len(clean)} of {len(units)} {'tests' if patterns else 'suites'} clean"
    if reports:
        detail += f"; reports: {', '.join(reports[:12])}"
    if stopped:
        detail += f"; not checked to their end: {len(stopped)}"
        if patterns:
            detail += f" ({', '.join(stopped[:12])})"
    seconds = {unit: round(done.seconds, 1) for unit, done in runs.items()}
    result = "failed" if reports else "passed" if clean else "skipped"
    return result, detail, {"clean": len(clean), "reports": reports, "unchecked": stopped,
                            "seconds_of": seconds}
