"""Attacks: an architecture that erodes. Floors, the absence of torch above `--help`, recipes that do not load, dead links, long files.

Run: pytest tests/test_project.py
"""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from swav.recipe_files import recipe_names, recipe_text

ROOT = Path(__file__).parents[1]
MAX_LINES = 500
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def imports_torch(code: str) -> bool:
    """Whether a fresh interpreter holds torch after running code."""
    ending = "import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{ending}"], capture_output=True, text=True, check=True)
    return done.stdout.split()[-1] == "True"


@pytest.mark.parametrize(
    "module",
    [
        "swav",
        "swav.config",
        "swav.training.auto",
        "swav.errors",
        "swav.cli",
        "swav.reporting.page",
        "swav.training.preflight",
        "swav.evaluation.request",
    ],
)
def test_what_must_answer_at_once_leaves_torch_out(module):
    assert not imports_torch(f"import {module}")


def test_the_check_for_torch_can_fail():
    assert imports_torch("import swav.algorithm")


def test_help_and_a_typo_answer_without_torch():
    run = "import swav.cli, sys\nsys.argv = ['swav', {}]\ntry: swav.cli.main()\nexcept SystemExit: pass"
    assert not imports_torch(run.format("'--help'"))
    assert not imports_torch(run.format("'pretrian'"))


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Checks the contracts of the pyproject.toml in a folder."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    arguments = [sys.executable, "-c", code, "--no-cache"]
    paths = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(arguments, capture_output=True, text=True, cwd=folder, check=False, env=os.environ | paths)


def test_imports_go_down_only():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_check_of_imports_can_fail(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        "[tool.importlinter]\nroot_package = 'swav'\n[[tool.importlinter.contracts]]\nname = 'upside down'\n"
        "type = 'layers'\ncontainers = ['swav']\nlayers = ['errors', 'config']\n"
    )
    done = lint_imports(tmp_path)
    assert done.returncode == 1 and "upside down" in done.stdout and "BROKEN" in done.stdout


def test_the_algorithm_may_import_nothing_beside_or_below_it_but_dist():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = [[name.strip("() ") for name in layer.split("|")] for layer in contracts[0]["layers"]]
    own = next(i for i, names in enumerate(floors) if "algorithm" in names)
    others = {name for names in floors[own:] for name in names} - {"algorithm", "dist"}
    assert {f"swav.{name}" for name in others} == set(contracts[1]["forbidden_modules"])


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_teaches(name):
    comment = recipe_text(name).splitlines()
    assert comment[0].startswith("# ") and any("swav pretrain" in line for line in comment if line.startswith("#"))
    assert any("hardware" in line.lower() for line in comment if line.startswith("#"))


def links(text: str) -> list[str]:
    """Relative targets of a Markdown page's links and pictures, code left out."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in targets if not re.match(r"[a-z]+:|#", target)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    dead = [
        target
        for target in links(page.read_text(encoding="utf-8"))
        if not (page.parent / target.partition("#")[0]).exists()
    ]
    assert not dead


def test_the_check_of_links_finds_them():
    assert links("[a](b.md) `[c](d.md)` ![e](f.png#g) [h](https://i.j) [k](#l)") == ["b.md", "f.png#g"]


def test_every_page_of_the_docs_is_linked_from_their_index():
    linked = set(links((ROOT / "docs/index.md").read_text(encoding="utf-8")))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"} <= linked


def test_the_recipes_page_lists_every_recipe_and_no_other():
    page = (ROOT / "docs/recipes.md").read_text(encoding="utf-8").partition("```")[0]
    assert sorted(re.findall(r"^\| `(.+?)` \|", page, flags=re.MULTILINE)) == recipe_names()


def test_the_architecture_page_names_every_module_and_the_readme_every_folder():
    page, readme = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/architecture.md", "README.md"))
    names = [path.name for path in (ROOT / "swav").rglob("*.py") if not path.name.startswith("__")]
    folders = [f"{path.name}/" for path in (ROOT / "swav").iterdir() if (path / "__init__.py").exists()]
    assert len(names) > 50 and not [name for name in names if name not in page]
    assert len(folders) == 7 and not [name for name in folders if f"  {name}" not in readme or f"  {name}" not in page]


def test_no_file_is_long():
    files = [
        path
        for folder in ("swav", "tests", "docs")
        for kind in ("py", "html", "css", "md")
        for path in (ROOT / folder).rglob(f"*.{kind}")
    ]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert lengths and not {name: length for name, length in lengths.items() if length > MAX_LINES}


def imported(*places: str) -> set[str]:
    """Packages, of others, that Python files import anywhere in them."""
    files = [path for place in places for path in sorted((ROOT / place).rglob("*.py"))]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_bytes()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - OURS


def declared(requirements: list[str]) -> set[str]:
    """Names by which the requirements are imported."""
    names = {re.split(r"[><=\[ ]", text, maxsplit=1)[0].lower().replace("-", "_") for text in requirements}
    return {IMPORTED_AS.get(name, name) for name in names}


OURS = {"swav", "tests", "typechecker", *(path.stem for path in (ROOT / "benchmarks").rglob("*.py"))}
IMPORTED_AS = {
    "opencv_python_headless": "cv2",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit_learn": "sklearn",
    "import_linter": "importlinter",
}
TOOLS = {"pytest_xdist", "pytest_timeout", "importlinter", "ruff", "mypy", "types_pyyaml"}  # run, or plugins


def test_dependencies_are_what_is_imported():
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, groups = content["project"], content["dependency-groups"]
    needed, dev, bench = map(declared, (project["dependencies"], groups["dev"], groups["bench"]))
    # faiss: benchmarks/knn.py compares with it where it is installed; lightly: accuracy.py makes it an environment of its own;
    # those of OpenMMLab: peers/openmmlab.py says how a folder of them is made
    of_swav, of_tests, of_benchmarks = imported("swav"), imported("tests"), imported("benchmarks")
    assert of_swav == needed
    assert of_tests - needed == dev - TOOLS
    assert of_benchmarks - needed - dev - {"faiss", "lightly", "mmcv", "mmdet", "mmseg"} == bench
    assert "matplotlib" not in of_swav | of_tests | needed


def test_the_supported_versions_of_python_are_said_alike():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = [text.rpartition(":: ")[2] for text in project["classifiers"] if re.search(r":: 3\.\d+$", text)]
    page = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["ci"]
    assert project["requires-python"] == f">={versions[0]}" and f"Python {versions[0]} to {versions[-1]}" in page
    assert workflow["strategy"]["matrix"]["python"] == [versions[0], versions[-1]]


def test_the_workflow_calls_ci_and_nothing_else():
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["ci"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]


def test_make_and_ci_run_the_same_commands():
    ci = (ROOT / ".ci/run").read_text()
    make = (ROOT / "Makefile").read_text()
    for command in ("ruff check", "ruff format --check", "mypy", "lint-imports", "pytest -m slow"):
        assert command in ci and command in make


def test_the_citation_is_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == project["version"] and citation["license"] == project["license"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()
