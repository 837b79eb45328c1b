"""Every example in a docstring runs, and every public name that is called has one or is shown in another's."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
from pathlib import Path

import plans
import pytest

import splitpoint
from splitpoint import images
from splitpoint.inputs import read_inputs
from splitpoint.link.presets import PRESETS
from splitpoint.models.zoo import digits
from splitpoint.planning.cost_model import CostModel
from splitpoint.planning.hosts import Host
from splitpoint.planning.placement_search import SplitProblem
from splitpoint.planning.solve.min_cut import least

MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(splitpoint.__path__, "splitpoint.")
    if not m.name.startswith(("splitpoint.cli.", "splitpoint.models.torch", "splitpoint.__main__"))
)
WITH_EXAMPLES = [
    m
    for m in MODULES
    if ">>>" in Path(str(importlib.util.find_spec(m).origin)).read_text()  # type: ignore[union-attr]
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings_are_true(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(name)
    public = {n: getattr(splitpoint, n) for n in splitpoint.__all__}
    digit = read_inputs(splitpoint.load("zoo:lenet5"), digits()[0])["image"]
    edge, cloud = plans.profiles("zoo:lenet5", 8.0, 1.0)
    costs = CostModel(edge.graph, (Host("device", edge), Host("server", cloud)))
    ready = {
        "digit": digit, "tmp": tmp_path, "images": images, "graph": edge.graph, "profile": edge, "edge": edge,
        "cloud": cloud, "problem": SplitProblem(costs).problem(PRESETS["4g"]), "PRESETS": PRESETS,
        "least": least, "costs": costs, "cut": edge.graph.chain()[0],
    }  # fmt: skip
    globs = public | ready | vars(module)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder().find(module, globs=globs):
        runner.run(test)
    assert runner.summarize(verbose=False).attempted > 0
    assert runner.summarize(verbose=False).failed == 0


def test_the_packages_own_example_runs() -> None:
    text = splitpoint.__doc__ or ""
    code = text.split("```python\n")[1].split("```")[0]
    ast.parse(code)
    image = read_inputs(splitpoint.load("zoo:efficientnet_lite0"), _photo())["image"]
    exec(compile(code, "splitpoint.__doc__", "exec"), {"image": image})


def _photo() -> Path:
    from splitpoint.models.zoo import photos

    return photos()[0]


def test_public_names_are_sorted_and_there() -> None:
    assert sorted(splitpoint.__all__) == splitpoint.__all__
    assert all(hasattr(splitpoint, name) for name in splitpoint.__all__)
