"""`import clp_jax`: what it has and what it costs, and a loop of one's own."""

import ast
import importlib
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import smoke

import clp_jax

IMPORTED = """
import sys, clp_jax
heavy = ("jax", "numpy", "flax", "tensorflow", "seqio", "gin", "matplotlib")
assert not {m.partition(".")[0] for m in sys.modules}.intersection(heavy)
assert set(clp_jax.__all__) <= set(dir(clp_jax))
try:
    clp_jax.trainstep
except AttributeError as error:
    assert "'clp_jax' has no attribute 'trainstep'" in str(error) and error.name == "trainstep"
assert clp_jax.__version__ == "0.1.0"
"""


def test_importing_the_package_imports_nothing_else():
    subprocess.run([sys.executable, "-c", IMPORTED], check=True)


def test_each_name_is_what_static_tools_take_it_for():
    tree = ast.parse(pathlib.Path(clp_jax.__file__).read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))  # if TYPE_CHECKING
    imported = {alias.name: node.module for node in checked.body for alias in node.names}
    assert imported == {name: f"clp_jax.{home}" for name, home in clp_jax._HOMES.items()}
    assert clp_jax.__all__ == sorted(imported)
    for name, module in imported.items():
        assert getattr(clp_jax, name) is getattr(importlib.import_module(module), name)


def test_no_name_is_that_of_a_room_or_a_command():
    taken = {path.stem for path in pathlib.Path(clp_jax.__file__).parent.iterdir()}
    assert not taken.intersection(clp_jax.__all__)


OWN_LOOP = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "seqio", "gin", "clu", "orbax", "matplotlib"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
"""


def test_the_loop_of_the_documentation_runs_anywhere_and_steers(tmp_path):
    page = (smoke.ROOT / "docs/own_loop.md").read_text()
    (code,) = re.findall(r"```python run\n(.*?)```", page, re.DOTALL)
    (tmp_path / "loop.py").write_text(OWN_LOOP + code)
    environment = {**os.environ, "PYTHONPATH": str(smoke.ROOT)}
    done = subprocess.run(
        [sys.executable, "loop.py"], cwd=tmp_path, env=environment, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed = [re.findall(r"\d\.\d\d", line) for line in done.stdout.splitlines()]
    w, _, first, second = np.array(printed, float).T
    np.testing.assert_allclose(w, [0, 0.25, 0.5, 0.75, 1])
    for rising in (first, second[::-1]):
        assert (np.diff(rising) > 0).all()
        assert rising[-1] - rising[0] > 0.5
