"""The machine that guards the arrows: DESIGN 4 checked from the sources themselves, without importing them.

A violation names file, line, rule and remedy. The tables below are the rules; a new file needs no new line here unless
it touches the outside. The last tests plant violations in a scratch tree, so a checker that went blind is noticed.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

from subnet.adversaries.names import Name

ROOT = Path(__file__).resolve().parent.parent

BANDS = (
    ("protocol",),
    ("coordination", "merging", "scoring"),
    ("model", "data"),
    ("chain", "storage", "transport"),
    ("orchestrator", "miner", "validator", "adversaries", "localnet", "simulation"),
)
BAND = {folder: number for number, folders in enumerate(BANDS, start=1) for folder in folders}
COMMANDS_BAND = len(BANDS)
"""Modules and packages right below subnet/ that are neither listed above nor a top file are command modules."""
TOP_FILES = {"errors": 1, "runtime": 4, "telemetry": 4, "flags": 5, "config": 5, "presets": 5}
"""Top file → the lowest band that may import it."""
TOP_FILES_MAY_IMPORT = {"presets": 3}
"""Top file → the highest band it may import; the others import top files only."""

COMPOSITION_ROOTS = (
    "neurons/*.py",
    "subnet/*/__main__.py",
    "subnet/localnet/*",
    "subnet/simulation/*",
    "subnet/validator/evaluator.py",
)
"""Files that wire parts together: they alone may import roles and the real adapters."""

OVER_A_SEAM = ("subnet.transport.transfer", "subnet.transport.backoff")
"""What is written over the seams alone and knows no adapter: roles may use it as they use a base."""

NAMED_FILES: dict[str, tuple[str, ...]] = {
    "bittensor": ("subnet/chain/*", "subnet/transport/signing.py", "subnet/localnet/wallets.py", "neurons/*.py"),
    "boto3": ("subnet/storage/s3.py",),
    "botocore": ("subnet/storage/s3.py",),
    "aiohttp": ("subnet/transport/http_*.py",),
    "sqlalchemy": ("subnet/storage/sql.py",),
    "time": ("subnet/runtime.py",),
    "random": (),
    "secrets": ("subnet/runtime.py",),
    "argparse": ("subnet/flags.py",),
    "pickle": (),
    "marshal": (),
    "shelve": (),
}
"""Library → the only files that may import it; everybody else goes through the seam in front of it."""
PURE_BANDS_NEVER = frozenset(
    "torch loguru logging asyncio datetime io os pathlib socket subprocess threading urllib uuid tempfile".split()
)
NO_TORCH = [f"subnet/model/{name}.py" for name in ("spec", "split", "wire", "initial")]
NO_TORCH += [f"subnet/data/{name}.py" for name in ("sampling", "token_shards", "prepare")]
NO_TORCH += ["subnet/presets.py", "subnet/config.py", "subnet/orchestrator/*"]

LINES_MAX, FUNCTION_LINES_MAX = 300, 70
LONG_ON_PURPOSE = {"subnet/protocol/messages.py": "every message in one place; there is no behaviour to lose track of"}


class Violation(NamedTuple):
    file: str
    line: int
    rule: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.rule}; {self.remedy}"


class Import(NamedTuple):
    module: str
    line: int
    typing_only: bool


class Module(NamedTuple):
    name: str
    file: str
    source: str
    tree: ast.Module
    imports: tuple[Import, ...]


def read_tree(root: Path) -> dict[str, Module]:
    """Module name → module, for everything below subnet/ and neurons/."""
    paths = sorted(path for top in ("subnet", "neurons") for path in (root / top).rglob("*.py"))
    files = {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    names = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in files}
    modules = {}
    for name, file in names.items():
        tree = ast.parse(files[file], file)
        modules[name] = Module(name, file, files[file], tree, tuple(_imports(tree, names)))
    return modules


def _imports(tree: ast.Module, known: dict[str, str]) -> Iterator[Import]:
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, id(node) in typing_only)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                full = f"{base}.{alias.name}"
                is_module = full in known or (base == "subnet" and not alias.name.startswith("__"))
                yield Import(full if is_module else base, node.lineno, id(node) in typing_only)


# ---- the rules -------------------------------------------------------------------------------------------------------


def check(root: Path) -> list[Violation]:
    """Every violation of DESIGN 4 in the tree below `root`."""
    modules = read_tree(root)
    found: list[Violation] = []
    for module in modules.values():
        for imported in module.imports:
            found += _check_arrow(module, imported)
            found += _check_library(module, imported)
        found += _check_form(module)
    return found + list(_check_orchestrator_graph(modules))


def _place(name: str) -> tuple[str, int]:
    """Folder and band of a module; top files have band 0."""
    parts = name.split(".")
    if parts[0] == "neurons":
        return "neurons", COMMANDS_BAND
    folder = parts[1] if len(parts) > 1 else ""
    return folder, 0 if folder in TOP_FILES or not folder else BAND.get(folder, COMMANDS_BAND)


def _is_root(file: str) -> bool:
    parts = file.removesuffix(".py").split("/")
    if len(parts) == 2 and parts[0] == "subnet" and parts[1] not in TOP_FILES:
        return True  # a command module: a thin main over the bands
    return any(fnmatch(file, pattern) for pattern in COMPOSITION_ROOTS)


def _check_arrow(module: Module, imported: Import) -> Iterator[Violation]:
    def violation(rule: str, remedy: str) -> Violation:
        return Violation(module.file, imported.line, f"{rule} (imports {imported.module})", remedy)

    if imported.module.startswith("."):
        yield violation("relative import", "write the full name: one module, one spelling")
    if imported.module.split(".")[0] in ("neurons", "tests"):
        yield violation("programs and tests are imported by nobody", "move what is shared below subnet/")
    if imported.module.split(".")[0] != "subnet":
        return
    (folder, band), (target, target_band) = _place(module.name), _place(imported.module)
    if target in TOP_FILES:
        if band and band < TOP_FILES[target] and not _is_root(module.file):
            yield violation(f"band {band} must not know {target}.py", "take what you need as an argument")
        return
    if not band:
        if target_band > TOP_FILES_MAY_IMPORT.get(folder, 0) and target:
            yield violation(f"top file {folder}.py imports a band", "move the code into the band")
        return
    if target_band > band:
        yield violation(f"band {band} imports band {target_band}", "pass it in, or move the code up")
    if {folder, target} == {"merging", "scoring"}:
        yield violation("merging and scoring do not know each other", "let coordination join them")
    if band == 4 and target_band == 4 and folder != target:
        yield violation("adapters do not know each other", "join them in a composition root")
    if band == 5 and not _is_root(module.file):
        if target_band == 5 and folder != target:
            yield violation("roles do not know each other", "move what is shared to a lower band")
        if target_band == 4 and not imported.module.endswith(".base") and imported.module not in OVER_A_SEAM:
            yield violation("a role sees only the base of an adapter", "take the seam as an argument")


def _check_library(module: Module, imported: Import) -> Iterator[Violation]:
    library = imported.module.split(".")[0]
    allowed = NAMED_FILES.get(library)
    if allowed is not None and not any(fnmatch(module.file, pattern) for pattern in allowed):
        where = ", ".join(allowed) or "nowhere"
        yield Violation(module.file, imported.line, f"{library} lives in: {where}", "use the seam in front of it")
    if library in PURE_BANDS_NEVER and _place(module.name)[1] in (1, 2):
        rule = f"bands 1 and 2 are pure, so no {library}"
        yield Violation(module.file, imported.line, rule, "decide here, act in a role; time comes in as an argument")
    if library == "torch" and any(fnmatch(module.file, pattern) for pattern in NO_TORCH):
        yield Violation(module.file, imported.line, "this file is torch-free", "use numpy, or move it to a torch file")


def _check_form(module: Module) -> Iterator[Violation]:
    if module.file.endswith("/__init__.py"):
        if module.source.strip() and module.file != "subnet/__init__.py":
            yield Violation(module.file, 1, "__init__.py stays empty", "import from the module that defines the name")
        return
    if not ast.get_docstring(module.tree):
        yield Violation(module.file, 1, "no opening docstring", "open with the module's law: purpose, what holds")
    if module.file.rsplit("/", 1)[1] in ("utils.py", "helpers.py", "manager.py"):
        yield Violation(module.file, 1, "a name that says nothing", "name the file after what it is about")
    lines = len(module.source.splitlines())
    if lines > LINES_MAX and module.file not in LONG_ON_PURPOSE:
        yield Violation(module.file, lines, f"{lines} lines, more than {LINES_MAX}", "split it, or give a reason here")
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES_MAX:
                rule = f"{node.name} has {length} lines, more than {FUNCTION_LINES_MAX}"
                yield Violation(module.file, node.lineno, rule, "split it by what its parts decide")
        elif isinstance(node, ast.Attribute):
            spelled = ast.unparse(node)
            if spelled in ("os.environ", "os.getenv") and module.file != "subnet/config.py":
                yield Violation(module.file, node.lineno, f"{spelled} outside config.py", "make it a config field")
            if spelled == "torch.load":
                yield Violation(module.file, node.lineno, "torch.load can run code", "use model.flat or safetensors")


def _check_orchestrator_graph(modules: dict[str, Module]) -> Iterator[Violation]:
    """Follows imports from the orchestrator on; what only type checkers see does not count."""
    waiting: list[tuple[str, tuple[str, ...]]]
    waiting = [(name, (name,)) for name in modules if name.startswith("subnet.orchestrator")]
    seen = {name for name, _ in waiting}
    while waiting:
        name, path = waiting.pop()
        for imported in modules[name].imports:
            if imported.typing_only:
                continue
            if imported.module.split(".")[0] == "torch":
                way = " → ".join(path)
                rule = f"the orchestrator's process would import torch ({way})"
                yield Violation(modules[name].file, imported.line, rule, "split off what needs no torch")
            elif imported.module in modules and imported.module not in seen:
                seen.add(imported.module)
                waiting.append((imported.module, (*path, imported.module)))


# ---- the tests -------------------------------------------------------------------------------------------------------


def test_the_tree_obeys_the_design() -> None:
    """1. A tired engineer adds the import that works right now; the build tells which arrow it broke and what to do."""
    violations = check(ROOT)
    assert not violations, "\n".join(["DESIGN 4 is violated:", *map(str, violations)])


def test_the_allow_list_holds_nothing_that_is_over() -> None:
    """2. A long file was split; its excuse goes too."""
    for file in LONG_ON_PURPOSE:
        assert len((ROOT / file).read_text(encoding="utf-8").splitlines()) > LINES_MAX, f"{file} is short again"


def test_the_orchestrator_runs_without_torch() -> None:
    """3. The owner's small server has 512 MB: whatever the imports look like, the process must not load torch."""
    code = "import sys, subnet.orchestrator.__main__; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr or "torch was loaded by importing subnet.orchestrator.__main__"


PLANTED = [
    ("subnet/protocol/ids.py", "import subnet.merging.butterfly", "band 1 imports band 2"),
    ("subnet/merging/reduction.py", "from subnet.scoring import ledger", "merging and scoring do not know each other"),
    ("subnet/coordination/machine.py", "from subnet.runtime import Runtime", "band 2 must not know runtime.py"),
    ("subnet/coordination/machine.py", "def f():\n    import torch", "bands 1 and 2 are pure"),
    ("subnet/model/stage.py", "from subnet import config", "band 3 must not know config.py"),
    ("subnet/model/wire.py", "import torch", "this file is torch-free"),
    ("subnet/storage/files.py", "from subnet.transport.base import X", "adapters do not know each other"),
    ("subnet/miner/miner.py", "from subnet.validator import auditor", "roles do not know each other"),
    ("subnet/miner/miner.py", "from subnet.storage.s3 import S3ObjectStore", "a role sees only the base"),
    ("subnet/miner/miner.py", "from . import trainer", "relative import"),
    ("subnet/miner/miner.py", "import tests.conftest", "imported by nobody"),
    ("subnet/errors.py", "from subnet.protocol import ids", "top file errors.py imports a band"),
    ("subnet/miner/miner.py", "import time", "time lives in"),
    ("subnet/data/prepare.py", "import random", "random lives in: nowhere"),
    ("subnet/miner/miner.py", "import bittensor.wallets", "bittensor lives in"),
    ("subnet/miner/miner.py", "import os\nHOME = os.environ['HOME']", "os.environ outside config.py"),
    ("subnet/model/export.py", "import torch\ntorch.load('x')", "torch.load can run code"),
    ("subnet/miner/__init__.py", "from subnet.miner.miner import Miner", "__init__.py stays empty"),
    ("subnet/miner/utils.py", "", "a name that says nothing"),
    ("subnet/miner/miner.py", "x = 1\n" * 301, "more than 300"),
    ("subnet/miner/miner.py", "def f():\n" + "    x = 1\n" * 70, "f has 71 lines"),
]


@pytest.mark.parametrize(("file", "source", "rule"), PLANTED, ids=[rule for _, _, rule in PLANTED])
def test_a_planted_violation_is_caught(tmp_path: Path, file: str, source: str, rule: str) -> None:
    """4. The checker itself is checked: each rule catches the mistake it is there for, and nothing beside it."""
    plant(tmp_path, {"subnet/scoring/ledger.py": "", "subnet/merging/butterfly.py": "", file: source})
    assert [v.file for v in check(tmp_path) if rule in str(v)] == [file]
    assert {v.file for v in check(tmp_path)} == {file}


def test_torch_is_found_behind_three_imports(tmp_path: Path) -> None:
    """5. orchestrator → data → model → torch: the way is shown; behind TYPE_CHECKING it is harmless."""
    tree = {
        "subnet/orchestrator/service.py": "from subnet.data import sizes",
        "subnet/data/sizes.py": "from subnet.model import stage",
        "subnet/model/stage.py": "import torch",
    }
    plant(tmp_path, tree)
    (violation,) = check(tmp_path)
    assert "subnet.orchestrator.service → subnet.data.sizes → subnet.model.stage" in violation.rule
    plant(tmp_path, {"subnet/model/stage.py": "import typing\nif typing.TYPE_CHECKING:\n    import torch"})
    assert check(tmp_path) == []


def test_a_file_must_say_what_it_is_for(tmp_path: Path) -> None:
    """6. A module without its law is refused."""
    plant(tmp_path, {"subnet/miner/miner.py": "x = 1"}, law="")
    assert ["no opening docstring" in str(v) for v in check(tmp_path)] == [True]


def test_composition_roots_may_wire(tmp_path: Path) -> None:
    """7. Somebody has to know everybody: main modules, neurons, the local net and the simulation."""
    wiring = "from subnet.storage.s3 import S3ObjectStore\nfrom subnet.miner import miner\n"
    roots = ["neurons/miner.py", "subnet/miner/__main__.py"]
    roots += ["subnet/localnet/launcher.py", "subnet/simulation/world.py"]
    parts = {"subnet/miner/miner.py": "", "subnet/storage/s3.py": "import boto3"}
    plant(tmp_path, dict.fromkeys(roots, wiring) | parts)
    assert check(tmp_path) == []


def named_adversaries(root: Path) -> list[str]:
    """Where an adversary is named outside its own folder, however it is spelled."""
    found = []
    for module in read_tree(root).values():
        if module.file.startswith("subnet/adversaries/"):
            continue
        for number, line in enumerate(module.source.splitlines(), start=1):
            bare = re.sub("[-_ ]", "", line.lower())
            found += [f"{module.file}:{number}: {name}" for name in Name if name.replace("-", "") in bare]
    return found


def test_nobody_knows_an_adversary_by_name(tmp_path: Path) -> None:
    """8. A check written for one cheat catches that cheat only; what it must look at is the work."""
    assert named_adversaries(ROOT) == []
    spelled = "if type(x) is " + "".join(part.title() for part in Name.UPDATE_SKIPPER.split("-")) + ": pass"
    plant(tmp_path, {"subnet/scoring/audit.py": spelled, "subnet/adversaries/one.py": spelled})
    assert named_adversaries(tmp_path) == [f"subnet/scoring/audit.py:2: {Name.UPDATE_SKIPPER}"]


def plant(root: Path, tree: dict[str, str], law: str = '"""Law."""\n') -> None:
    for file, source in tree.items():
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source if file.endswith("__init__.py") else law + source, encoding="utf-8")
