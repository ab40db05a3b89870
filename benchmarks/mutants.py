"""Plant small faults in the package, one at a time, and see whether the nearest tests notice.

    python benchmarks/mutants.py --max_mutants 200 --jobs 2         # goes on where it stopped

Each mutant is one change of the syntax tree (a comparison turned, a sign, a number plus one, a condition negated, a
call left out, a keyword dropped …). They are drawn evenly over the modules of `NEAREST`, the same for a seed.
First all of these tests run once and coverage.py writes down which of them runs which line, a quarter of an hour.
A mutant then meets tests that run its line, one of each function first, the fastest first, a minute of them; where
only the import runs a line, as a default's, all tests that stand near to the module.
Tests run in a copy of the checkout, so that the checkout itself is never touched, each with a time limit, and in a
fork of a process that has torch and its company imported already, but nothing of the package. Every result is a row of
`mutants.csv` beside this script at once; one whose row is there is not run again.

- noticed: a test failed. late: the tests took too long, which would be noticed. unnoticed: all tests passed.
"""

import argparse
import ast
import copy
import csv
import importlib
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

from coverage import CoverageData

ROOT = Path(__file__).parent.parent
DEFAULTS = tuple(
    f"tests/test_page_facts.py::test_{test}"
    for test in ("defaults_are_those_of_the_configuration", "the_training_page_says_the_learning_rates")
)
METHODS = (*DEFAULTS, "tests/test_golden.py", "tests/test_methods.py", "tests/test_streaming.py")
RUNS = ("tests/test_checkpoints.py",)
NEAREST = {  # module → tests that stand nearest, the fastest first
    "hf_i2v/methods/site.py": ("tests/test_outside_methods.py", "tests/test_streaming.py"),
    "hf_i2v/methods/config.py": ("tests/test_tuner.py", *METHODS, "tests/hub/test_safety.py"),
    "hf_i2v/methods/stdha.py": ("tests/test_zeroi2v.py", *METHODS),
    "hf_i2v/methods/linear_adapter.py": ("tests/test_zeroi2v.py", *METHODS),
    "hf_i2v/methods/st_adapter.py": METHODS,
    "hf_i2v/methods/aim.py": METHODS,
    "hf_i2v/methods/inti.py": METHODS,
    "hf_i2v/methods/m_adapter.py": (*METHODS, "tests/test_feature_cache.py"),
    "hf_i2v/frames.py": ("tests/test_zeroi2v.py", *METHODS),
    "hf_i2v/block.py": (*METHODS, "tests/test_zeroi2v.py", "tests/test_tuner.py", "tests/test_backbones.py"),
    "hf_i2v/merging.py": ("tests/test_zeroi2v.py", "tests/test_tuner.py", "tests/test_methods.py"),
    "hf_i2v/video.py": ("tests/test_modeling.py", *METHODS, "tests/test_citizen.py"),
    "hf_i2v/data/sampling.py": ("tests/data/test_sampling.py",),
    "hf_i2v/data/loader.py": ("tests/data/test_loader.py", "tests/data/test_broken_files.py"),
    "hf_i2v/untrusted.py": ("tests/hub/test_safety.py",),
    "hf_i2v/training/checkpoints.py": RUNS,
    "hf_i2v/training/state.py": RUNS,
    "hf_i2v/training/evaluation.py": ("tests/test_evaluation.py",),
    "hf_i2v/counting.py": ("tests/test_cost.py",),
    "hf_i2v/cost.py": ("tests/test_cost.py",),
}
SECONDS_OF_TESTS = 60  # that a mutant meets, as long as they take without it
COLUMNS = ("mutant", "verdict", "seconds", "module", "line", "change")
SWAPPED = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


def mutations(node: ast.AST) -> Iterator[ast.AST | None]:
    """What may stand in the place of a node; None: nothing."""
    other = copy.deepcopy(node)
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPPED and not _is_text(node):
        other.op = SWAPPED[type(node.op)]()
        yield other
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPPED:
        other.ops[0] = SWAPPED[type(node.ops[0])]()
        yield other
    elif isinstance(node, ast.BoolOp):
        other.op = SWAPPED[type(node.op)]()
        yield other
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
        yield other.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, (ast.If, ast.While, ast.IfExp)):
        other.test = ast.UnaryOp(ast.Not(), other.test)
        yield other
    elif isinstance(node, ast.Call) and node.keywords:
        other.keywords.pop()
        yield other
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, (ast.AugAssign, ast.Break, ast.Continue)) or _is_left_out(node):
        yield ast.Pass()
    elif isinstance(node, ast.Slice) and node.lower is not None:
        other.lower = None
        yield other


def _is_text(node: ast.BinOp) -> bool:
    return any(
        isinstance(n, (ast.JoinedStr, ast.BitOr)) or isinstance(getattr(n, "value", 0), str) for n in ast.walk(node)
    )


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_left_out(node: ast.stmt) -> bool:
    """A statement without which the function goes on: a call, or a value put into an attribute or a list."""
    if isinstance(node, ast.Assign):
        return not any(isinstance(target, (ast.Name, ast.Tuple)) for target in node.targets)
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)


class Mutator(ast.NodeTransformer):
    """Goes through a module in order and puts mutation number `chosen` in its place; counts them all."""

    def __init__(self, chosen: int = -1):
        self.chosen, self.count, self.change = chosen, 0, ("", 0)

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, (ast.JoinedStr, ast.Raise, ast.Import, ast.ImportFrom, ast.Assert)):
            return node  # messages
        for other in mutations(node):
            if self.count == self.chosen:
                self.change = (f"{_short(node)} → {_short(other)}", node.lineno)
                self.count += 1
                return ast.fix_missing_locations(ast.copy_location(other, node))
            self.count += 1
        if isinstance(node, ast.FunctionDef):  # neither types nor decorators
            node.body = [self.visit(child) for child in node.body]
            return node
        if isinstance(node, ast.AnnAssign):
            node.value = node.value and self.visit(node.value)
            return node
        return self.generic_visit(node)


def _short(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())[:90]


def mutated(source: str, chosen: int) -> tuple[str, str, int]:
    """A module's text with one mutation, what it is, and its line."""
    mutator = Mutator(chosen)
    tree = mutator.visit(ast.parse(source))
    return ast.unparse(tree), *mutator.change


def chosen_mutants(modules: list[str], count: int, seed: int) -> list[tuple[str, int]]:
    """(module, number) of the mutants to try, as evenly over the modules as they allow."""
    queues = []
    for module in modules:
        counter = Mutator()
        counter.visit(ast.parse((ROOT / module).read_text()))
        numbers = list(range(counter.count))
        random.Random(f"{seed} {module}").shuffle(numbers)
        queues.append([(module, number) for number in numbers])
    rounds = (queue[i] for i in range(max(map(len, queues))) for queue in queues if i < len(queue))
    return [mutant for mutant, _ in zip(rounds, range(count), strict=False)]


IMPORTED = ("torch._dynamo", "peft", "accelerate", "datasets", "av", "pytest", "tensorboard", "matplotlib.figure")
IMPORTED += tuple(f"transformers.models.{name}.modeling_{name}" for name in ("clip", "vit", "dinov2", "siglip"))


def serve(place: Path, orders: Connection) -> None:
    """Receives (tests, seconds), runs pytest in a fork and in the folder `place`, and sends the verdict."""
    without_threads = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    os.environ |= without_threads | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(place)}
    os.chdir(place)
    sys.path.insert(0, str(place))
    sys.dont_write_bytecode = True
    for name in IMPORTED:
        importlib.import_module(name)
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("The imports have started threads, and a fork copies the locks that they hold.")
    while order := _received(orders):
        tests, seconds = order
        if (child := os.fork()) == 0:
            os.setsid()
            nothing = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(nothing, number)
            os._exit(importlib.import_module("pytest").main(["-q", "-x", "-n", "0", *tests]) != 0)
        end, ended = time.monotonic() + seconds, 0
        while not ended and time.monotonic() < end:
            time.sleep(0.05)
            ended, status = os.waitpid(child, os.WNOHANG)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # and what the tests have started
        if not ended:
            os.waitpid(child, 0)
        orders.send("late" if not ended else "noticed" if status else "unnoticed")


def _received(orders: Connection) -> tuple | None:
    try:
        return orders.recv()
    except EOFError:  # whoever ordered has been killed
        return None


class LinesRun:
    """Which tests run a line, by coverage.py's contexts; made once and kept beside the table.

    Args:
        file: of the coverage; the durations of the tests lie beside it.
        tests: what to run if the file does not exist.
        jobs: test processes at a time.
    """

    def __init__(self, file: Path, tests: list[str], jobs: int):
        log = file.with_suffix(".log")
        if not file.exists():
            arguments = ["-q", "-n", str(jobs), "--durations=0", "--durations-min=0", "--cov=hf_i2v"]
            arguments += ["--cov-context=test", "--cov-report=", *tests]
            with open(log, "w") as output:
                done = subprocess.run(
                    [sys.executable, "-m", "pytest", *arguments], stdout=output, cwd=ROOT,
                    env=os.environ | {"COVERAGE_FILE": str(file)}, check=False,
                )  # fmt: skip
            if done.returncode:
                file.unlink(missing_ok=True)
                raise RuntimeError(f"Without any fault the tests fail, and nothing can be known: see {log}.")
        self.data = CoverageData(str(file))
        self.data.read()
        self.seconds: Counter[str] = Counter()
        for seconds, test in re.findall(r"^([\d.]+)s (?:call|setup|teardown) +(.*)$", log.read_text(), re.MULTILINE):
            self.seconds[test] += float(seconds)

    def tests(self, module: str, line: int) -> list[str]:
        """Ids of tests, in the order in which to run them; none if only an import runs the line."""
        (file,) = (name for name in self.data.measured_files() if name.endswith(f"/{module}"))
        contexts = self.data.contexts_by_lineno(file)
        first = max((number for number in contexts if number <= line), default=line)  # of a statement of many lines
        ran_by = contexts.get(first, [])
        ids = {context.rpartition("|")[0] for context in ran_by} - {""}
        shared = {context.partition("::")[0] for context in ran_by if context.endswith("|setup")}
        ids |= {test for test in self.seconds if test.partition("::")[0] in shared}  # they use what the first one made
        by_speed = sorted(ids, key=lambda test: (self.seconds[test], test))
        fastest: dict[str, str] = {}  # of each function
        for test in by_speed:
            fastest.setdefault(test.partition("[")[0], test)
        chosen, left = [], SECONDS_OF_TESTS
        for test in dict.fromkeys([*fastest.values(), *by_speed]):
            if self.seconds[test] <= left:
                chosen.append(test)
                left -= self.seconds[test]
        return chosen


class Copies:
    """Copies of the checkout, one for each test run at a time, and a process beside each that runs pytest there."""

    def __init__(self, count: int):
        self._folder = tempfile.TemporaryDirectory()
        self.free, spawned = SimpleQueue(), multiprocessing.get_context("spawn")
        ignored = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", "*.egg-info")
        for number in range(count):
            place = Path(self._folder.name) / str(number)
            shutil.copytree(ROOT, place, ignore=ignored)
            orders, theirs = spawned.Pipe()
            spawned.Process(target=serve, args=(place, theirs)).start()
            theirs.close()
            self.free.put((place, orders))

    def run_tests(self, module: str, text: str, tests: list[str], seconds: float) -> tuple[str, float]:
        """The verdict of the tests with another text of a module, and how long they took."""
        place, orders = self.free.get()
        file, whole = place / module, (place / module).read_text()
        started = time.monotonic()
        try:
            file.write_text(text)
            orders.send((tests, seconds))
            verdict = orders.recv()
        finally:
            file.write_text(whole)
            self.free.put((place, orders))
        return verdict, time.monotonic() - started

    def close(self) -> None:
        while not self.free.empty():
            self.free.get()[1].send(None)


def read_rows(file: Path) -> list[dict]:
    if not file.exists():
        return []
    with open(file, newline="") as text:
        return list(csv.DictReader(text))


def main(argv: list[str] | None = None) -> Counter:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("modules", nargs="*", help="paths as in NEAREST, or parts of them; default: all")
    parser.add_argument("--max_mutants", type=int, default=200, help="over all modules")
    parser.add_argument("--jobs", type=int, default=1, help="test runs at a time")
    parser.add_argument("--seconds", type=float, default=900, help="time limit of a test run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_file", type=Path, default=Path(__file__).with_suffix(".csv"))
    args = parser.parse_args(argv)
    wanted = args.modules or [""]
    modules = [m for m in NEAREST if (ROOT / m).exists() and any(part in m for part in wanted)]
    if not modules:
        parser.error(f"{args.modules} is no part of {', '.join(NEAREST)}")
    rows = read_rows(args.output_file)
    done = {row["mutant"] for row in rows}
    todo = [m for m in chosen_mutants(modules, args.max_mutants, args.seed) if f"{m[0]}:{m[1]}" not in done]
    near = list(dict.fromkeys(test for tests in NEAREST.values() for test in tests))
    ran = LinesRun(args.output_file.with_suffix(".coverage"), near, args.jobs)
    copies, writing = Copies(args.jobs), threading.Lock()
    sources = {module: (ROOT / module).read_text() for module in modules}

    def add(row: tuple) -> None:
        with writing:
            is_new = not args.output_file.exists()
            with open(args.output_file, "a", newline="") as text:
                writer = csv.writer(text, lineterminator="\n")
                writer.writerows([COLUMNS] * is_new + [row])
            print(*row, flush=True)

    def try_one(mutant: tuple[str, int]) -> None:
        module, number = mutant
        text, change, line = mutated(sources[module], number)
        tests = ran.tests(module, line) or NEAREST[module]
        verdict, seconds = copies.run_tests(module, text, tests, args.seconds)
        add((f"{module}:{number}", verdict, round(seconds), module, line, change))

    with closing(copies), ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(try_one, todo))
    counts = Counter(row["verdict"] for row in read_rows(args.output_file))
    print(dict(counts))
    return counts


if __name__ == "__main__":
    main()
