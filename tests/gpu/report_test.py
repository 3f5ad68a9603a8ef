#!/usr/bin/env python3
"""Tests of report.py, and that what it looks for is what the measuring programs print.

  report_test.py [BENCH...]     the programs of measurements; without them that test is left out
"""

import contextlib
import io
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest
import unittest.mock

import report
import run
import session
import suites
import training

BENCHES = []


def line(name, shape, by="tessera", **fields):
    return {"by": by, "name": name, "shape": shape, **fields}


def fake_results():
    return {
        "date": "2030-01-02T03:04:05+00:00", "mode": "full",
        "build": {"commit": "0123456789abcdef", "changed": False, "toolkit": "13.0"},
        "gpu": {"name": "GPU of a test", "count": 2, "driver": "580.1", "cuda_of_driver": "13.0"},
        "steps": [{"step": "kernels_test", "result": "failed", "detail": "9 of 10 tests passed; failed: A.b",
                   "seconds": 1},
                  {"step": "nccl", "result": "skipped", "detail": "no time was left", "seconds": 0}],
        "measurements": [
            line("copy", "[268435456]", microseconds=500, gbps=4000.0, percent_of_copy=100),
            line("matmul_rate", "8192 x 8192 x 8192", microseconds=1400, tflops=790.0),
            line("rope", "[16384, 32, 128]", microseconds=80, gbps=3600.0, percent_of_copy=90.0),
            line("rope", "[16384, 32, 128]", "torch.compile", microseconds=90, percent_of_copy=80.0),
            line("swiglu_forward", "[16384, 8192]", error="there is no | kernel"),
            line("dgsa_layer_forward", "32k tokens", microseconds=2000),
            line("dgsa_layer_backward", "32k tokens", microseconds=8000),
            line("attention_forward", "32k tokens", report.CUDNN, microseconds=14000, tflops=600.0),
            line("attention_backward", "32k tokens", report.CUDNN, microseconds=42000, tflops=500.0),
            line("attention_forward", "32k tokens", microseconds=16000, tflops=300.0),
            line("decode_sparse", "32k tokens, batch 1", microseconds=10),
            line("training_step_by_graph", training.SMALL, microseconds=8000),
            line("training_step_by_kernels", training.SMALL, microseconds=20000),
            line("training_step_by_graph", training.LARGE, microseconds=8000),
            line("decode_dense", "32k tokens, batch 1", microseconds=50),
        ],
    }


class Report(unittest.TestCase):
    def rows(self, results):
        """{what: other cells} of all tables."""
        found = {}
        for text in report.document(results).splitlines():
            cells = [cell.strip() for cell in text.strip("|").split("|")]
            if text.startswith("|") and cells[0] not in found:
                found[cells[0]] = cells[1:]
        return found

    def test_without_results_every_row_says_so(self):
        text = report.document({})
        rows = [row for row in text.splitlines() if row.startswith("| ") and not
                row.startswith(("| what", "| ---"))]
        self.assertGreater(len(rows), 25)
        for row in rows:
            self.assertIn(report.NOT_RUN, row.split("|")[2], row)
            self.assertEqual(sum(digit.isdigit() for digit in row.split("|")[2]), 0, row)

    def test_figures_peers_and_percent_of_the_target(self):
        rows = self.rows(fake_results())
        self.assertEqual(rows["RoPE, [16384, 32, 128]"],
                         ["90% (3600 GB/s)", "80 %", "90% of a copy", "100%"])
        self.assertEqual(rows["DGSA, forward + backward, 32k tokens"],
                         ["10.00 ms = 5.6 x", "dense: 56.00 ms", "5 x cuDNN dense", "112%"])
        self.assertEqual(rows["dense attention, forward, 32k tokens"],
                         ["300 TFLOP/s", "600 TFLOP/s", "cuDNN's rate", "50%"])
        self.assertEqual(rows["decoding, attention of a layer, 32k tokens, batch 1"],
                         ["0.010 ms = 5.0 x", "our dense: 0.050 ms", "3 x dense", "167%"])
        self.assertEqual(rows[f"training step as a graph, {training.SMALL}"],
                         ["8.00 ms = 2.50 x", "kernel by kernel: 20.00 ms", "-", "-"])
        self.assertEqual(rows[f"training step as a graph, {training.LARGE}"],
                         ["8.00 ms", f"kernel by kernel: {report.NOT_RUN}", "-", "-"])

    def test_what_is_missing_or_failed_has_no_figure(self):
        rows = self.rows(fake_results())
        self.assertEqual(rows["SwiGLU forward, [16384, 8192]"][0], "failed: there is no / kernel")
        self.assertEqual(rows["AdamW, [134217728]"][0], report.NOT_RUN)
        self.assertEqual(rows["DGSA, forward + backward, 128k tokens"][0], report.NOT_RUN)
        self.assertEqual(rows["tests of all kernels"], ["failed: 9 of 10 tests passed; failed: A.b", "0123456789ab"])
        self.assertTrue(rows["NCCL, one rank per GPU"][0].startswith(report.NOT_RUN))

    def test_what_was_measured_again_takes_the_place_of_the_old(self):
        kept, new = fake_results(), fake_results()
        new |= {"build": {"commit": "fedcba9876543210"}, "date": "2031-03-04"}
        new["measurements"] = [line | {"tflops": 450.0} for line in new["measurements"]
                               if line["name"] == "attention_forward" and line["by"] == "tessera"]
        new["steps"] = [{"step": "kernels_test", "result": "passed", "detail": "all"}]
        both = report.added(kept, new)
        rows = self.rows(both)
        self.assertEqual(rows["dense attention, forward, 32k tokens"][0], "450 TFLOP/s")
        self.assertEqual(rows["tests of all kernels"], ["passed: all", "fedcba987654"])
        self.assertEqual(len(both["measurements"]), len(kept["measurements"]))
        self.assertIn("2031-03-04, commit fedcba987654", report.document(both))

    def test_what_has_changed_is_told_until_it_is_measured_again(self):
        kept = fake_results() | {"changed": [{"step": "kernels_test", "what": "norms are twice as slow"},
                                             {"step": "gpu_decode_bench", "what": "batches are one call"}]}
        text = report.document(kept)
        self.assertIn("* norms are twice as slow (`kernels_test`)\n* batches are one call", text)
        new = fake_results() | {"steps": [{"step": "kernels_test", "result": "passed", "detail": "all"}]}
        text = report.document(report.added(kept, new))
        self.assertNotIn("norms are twice as slow", text)
        self.assertIn("not measured again:\n\n* batches are one call (`gpu_decode_bench`)\n", text)
        self.assertNotIn("Changed since", report.document(fake_results()))

    def test_says_where_and_when(self):
        text = report.document(fake_results())
        for fact in ["2030-01-02", "0123456789ab", "2 x GPU of a test", "580.1", "4000 GB/s", "790 TFLOP/s"]:
            self.assertIn(fact, text)

    def test_the_document_is_up_to_date(self):
        source = report.KEPT
        results = json.loads(source.read_text()) if source.exists() else {}
        self.assertEqual(report.DOCUMENT.read_text(), report.document(results),
                         "run tests/gpu/report.py")


class Names(unittest.TestCase):
    def dry_runs(self, *more):
        lines = []
        for bench in BENCHES:
            lines += session.json_lines(subprocess.run([bench, "--dry-run", *more], text=True, check=True,
                                                       stdout=subprocess.PIPE).stdout)
        return {(line["name"], line["shape"]) for line in lines}

    def peers(self):
        done = subprocess.run([sys.executable, str(report.ROOT / "tests" / "bench" / "gpu_peers.py"),
                               "--dry-run"], text=True, check=True, stdout=subprocess.PIPE)
        return {(line["by"], line["name"], line["shape"]) for line in session.json_lines(done.stdout)}

    def test_the_rows_are_measured(self):
        if not BENCHES:
            self.skipTest("no programs were given")
        ours, theirs = self.dry_runs(), self.peers()
        for _, name, shape, by, *_ in report.MEMORY + report.PRODUCTS:
            self.assertIn((name, shape), ours)
            if by:
                self.assertIn((by, name, shape), theirs)
        for shape, _ in report.DGSA:
            for name in ["dgsa_layer_forward", "dgsa_layer_backward"]:
                self.assertIn((name, shape), ours)
            for name in ["attention_forward", "attention_backward"]:
                self.assertIn((report.CUDNN, name, shape), theirs)
        for shape, _ in report.DECODE:
            for _, name, plain, _ in report.DECODED:
                self.assertIn((name, shape), ours)
                self.assertIn((plain, shape), ours)
        for _, name, shape in theirs:
            self.assertIn((name, shape), ours)
        quick = self.dry_runs("--quick")
        for name, shape in [("dgsa_layer_forward", "128k tokens"), ("decode_sparse", "32k tokens, batch 1"),
                            ("grouped_matmul_dw", "16 x 2048 x 768 x 2048")]:
            self.assertIn((name, shape), quick)

    def test_the_groups_are_those_of_the_programs(self):
        for bench in BENCHES:
            for group in run.BENCHES[pathlib.Path(bench).name]:
                subprocess.run([bench, "--dry-run", group], check=True, stdout=subprocess.DEVNULL)


class Steps(unittest.TestCase):
    """The machinery, with programs of the shell in place of ours."""

    def session(self, folder, **programs):
        build = pathlib.Path(folder) / "build"
        (build / "tests").mkdir(parents=True)
        for name, text in programs.items():
            path = build / "tests" / name
            path.write_text("#!/bin/sh\n" + text)
            path.chmod(0o755)
        return session.Session(str(build), str(pathlib.Path(folder) / "out"), 60, True)

    def test_a_step_that_fails_is_noted_down_and_the_next_begins(self):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            here = self.session(folder)
            here.step("first", lambda: 1 // 0)
            here.step("second", lambda: ("passed", "fine", {"number": 3}))
            steps = json.loads((here.out / "results.json").read_text())["steps"]
        self.assertEqual([step["result"] for step in steps], ["failed", "passed"])
        self.assertIn("ZeroDivisionError", steps[0]["detail"])
        self.assertEqual(steps[1]["number"], 3)

    def test_commands_end_at_their_limit(self):
        with tempfile.TemporaryDirectory() as folder:
            here = self.session(folder)
            done = here.run(["sh", "-c", "echo begun; sleep 30"], 1)
            self.assertEqual((done.code, done.output), (None, "begun\n"))
            self.assertLess(done.seconds, 10)
            self.assertEqual(here.run(["/no/such/program"], 1).code, 127)

    def test_a_crash_hides_no_other_test(self):
        program = """
case "$1" in
  --gtest_list_tests) printf 'Good.\\n  a\\n  b\\nBad.\\n  a\\n  b  # GetParam() = 3\\n' ;;
  *Good.*) printf '[       OK ] Good.a (1 ms)\\n[       OK ] Good.b (1 ms)\\n' ;;
  *"Bad.*") printf '[  FAILED  ] Bad.a (1 ms)\\n'; kill -ABRT $$ ;;
  *Bad.a) exit 1 ;;
  *Bad.b) printf '[       OK ] Bad.b (1 ms)\\n' ;;
esac
"""
        with tempfile.TemporaryDirectory() as folder:
            result, detail, facts = suites.run(self.session(folder, some_test=program), "some_test", 30)
        self.assertEqual((result, facts["passed"], facts["failed"]), ("failed", 3, ["Bad.a"]))
        self.assertIn("3 of 4 tests passed", detail)

    def sanitized(self, folder, patterns, unchecked=(), seconds=60):
        """Under a compute-sanitizer that says how it was called, and does not end for Slow.b."""
        tests = """
case "$1" in
  --gtest_list_tests) printf 'Good.\\n  a\\n  b\\nWorkGraph.\\n  a\\nSlow.\\n  a\\n  b\\n' ;;
esac
"""
        tool = """#!/bin/sh
echo "$@" >>"$0.calls"
case "$*" in
  *WorkGraph*--report-api-errors*|*--report-api-errors*WorkGraph*) ;;
  *WorkGraph*) echo "========= ERROR SUMMARY: 1 error"; exit 99 ;;
  *Slow.b*|*Slow.\\**) exec sleep 30 ;;
esac
echo "========= ERROR SUMMARY: 0 errors"
"""
        here = self.session(folder, kernels_test=tests)
        path = pathlib.Path(folder) / "compute-sanitizer"
        path.write_text(tool)
        path.chmod(0o755)
        kept = pathlib.Path(folder) / "kept.json"
        kept.write_text(json.dumps({"steps": [{"step": "racecheck", "unchecked": list(unchecked)}]}))
        here.tool = lambda name: str(path)
        with unittest.mock.patch.object(suites, "KEPT", kept):
            found = suites.sanitize(here, "racecheck", seconds, patterns, processes=1)
        return found, pathlib.Path(f"{path}.calls").read_text().splitlines()

    def test_suites_that_were_never_checked_come_first(self):
        with tempfile.TemporaryDirectory() as folder:
            (result, detail, facts), calls = self.sanitized(folder, None, ["Slow"], 4)
        self.assertEqual(result, "passed")
        self.assertIn("2 of 3 suites clean; not checked to their end: 1", detail)
        self.assertEqual(facts["unchecked"], ["Slow"])
        self.assertIn("Slow.*", calls[1])  # after WorkGraph, which is called in another way
        self.assertTrue(all("WorkGraph" not in call or "--report-api-errors no" in call for call in calls))

    def test_chosen_suites_are_checked_test_by_test(self):
        with tempfile.TemporaryDirectory() as folder:
            (result, detail, facts), calls = self.sanitized(folder, ["unfinished", "G*d"], ["Slow"], 4)
        self.assertEqual(len(calls), 4)
        self.assertEqual((result, facts["unchecked"]), ("passed", ["Slow.b"]))
        self.assertIn("3 of 4 tests clean; not checked to their end: 1 (Slow.b)", detail)
        self.assertEqual(run.read_only(["racecheck:A,B*", "facts", "racecheck:C"]),
                         (["racecheck", "facts", "racecheck"], {"racecheck": ["A", "B*", "C"]}))

    def test_measurements_after_a_crash_come_group_by_group(self):
        program = """
for last; do :; done
case "$last" in
  grouped) echo '{"by": "tessera", "name": "a", "shape": "1", "microseconds": 2}' ;;
  dense) echo '{"by": "tessera", "name": "b", "shape": "1", "error": "no"}'; exit 1 ;;
  *) echo '{"by": "tessera", "name": "a", "shape": "1", "error": "stopped"}'; exit 1 ;;
esac
"""
        with tempfile.TemporaryDirectory() as folder:
            here = self.session(folder, gpu_matmul_bench=program)
            result, detail, _ = run.measure(here, "gpu_matmul_bench", 30)
        self.assertEqual((result, detail), ("failed", "1 measured; b: no"))
        self.assertEqual([line.get("microseconds") for line in here.results["measurements"]], [2, None])


if __name__ == "__main__":
    BENCHES = sys.argv[1:]
    unittest.main(argv=sys.argv[:1])
