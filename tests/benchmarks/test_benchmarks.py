"""The benchmarks themselves, at a size at which their times mean nothing."""

import importlib.util
import json
import math
import mmap
import os
import pathlib
import statistics
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"
QUICK = ["--tiny", "--rounds=2", "--batch_size=4", "--prompt_length=8", "--completion_length=3"]
# Most of the time goes to compilation.
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
IMPLEMENTATIONS = {
    "ours": (),
    "hf": ("torch", "transformers"),
    "t5x": ("t5x",),
    "t5x-gather": ("t5x",),
}


@pytest.fixture(autouse=True)
def _benchmarks_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def settings():
    import common

    arguments = common.parser("", batch_size=4).parse_args(QUICK)
    return common.settings_of(arguments, 4)


def run(tmp_path, script, *flags):
    """The report of a script, and what it printed."""
    output = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, FOLDER / script, *QUICK, f"--output={output}", *flags],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": XLA_FLAGS},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text()), done.stdout


def assert_is_comparison(row, base):
    """The statistics of `row` follow from the times of both."""
    times, base_times = row["times_ms"], base["times_ms"]
    assert len(times) == 2
    assert min(times) > 0
    assert row["median_ms"] == pytest.approx(sum(times) / 2)
    assert row["min_ms"] == min(times)
    assert row["ratio"] == pytest.approx(sum(times) / sum(base_times))
    rounds = [a / b for a, b in zip(times, base_times, strict=True)]
    assert row["median_of_round_ratios"] == pytest.approx(sum(rounds) / 2)


def assert_has_frame(report, name):
    assert report["benchmark"] == name
    assert report["environment"]["jax"] == jax.__version__
    assert report["environment"]["cores"] >= 1
    assert {"python", "torch", "cpu", "load_average"} <= report["environment"].keys()
    (settings,) = report["settings"]
    assert settings["batch_size"] == 4
    assert settings["completion_length"] == 3
    assert settings["threads"] in (1, 2)


@pytest.mark.slow
def test_rollout(tmp_path):
    report, printed = run(tmp_path, "rollout.py")
    assert_has_frame(report, "rollout")
    importable = [
        name for name, needs in IMPLEMENTATIONS.items() if all(map(importlib.util.find_spec, needs))
    ]
    assert [row["implementation"] for row in report["results"]] == importable
    for name in IMPLEMENTATIONS.keys() - set(importable):
        assert "not importable: skipped" in report["skipped"][name]
        assert f"{name}: {report['skipped'][name]}" in printed
    for row in report["results"]:
        assert_is_comparison(row, report["results"][0])
        assert row["greedy_equal"] >= 0.99
        assert row["tokens/s"] == pytest.approx(4 * 3 / row["median_ms"] * 1e3)
        assert row["GFLOP/s"] == pytest.approx(row["flops"] / row["median_ms"] / 1e6)
        assert row["of_peak"] == pytest.approx(row["GFLOP/s"] / row["product_GFLOP/s"])
        assert row["peak_MiB"] > row["above_start_MiB"]
        assert row["first_token_ms"] == statistics.median(row["first_token_times_ms"])
        assert f"{row['median_ms']:.1f}" in printed


@pytest.mark.slow
def test_step(tmp_path, settings):
    import common

    report, printed = run(tmp_path, "step.py")
    assert_has_frame(report, "step")
    rows = {row["variant"]: row for row in report["results"]}
    assert list(rows) == ["single", "attn", "full"]
    leaves = jax.tree.leaves(common.param_shapes(common.make_module(settings)))
    model_bytes = sum(4 * math.prod(leaf.shape) for leaf in leaves)
    for name, row in rows.items():
        assert_is_comparison(row, rows["single"])
        for program in ("generate", "score", "update"):
            assert 0 < row[f"{program}_ms"] <= max(row["times_ms"])
            assert row["xla_bytes"][program]["argument"] > model_bytes
        assert row["bytes"]["reference"] == model_bytes
        assert row["bytes"]["state"] > row["bytes"]["parameters"] + model_bytes
        # The update writes its state over the donated one, but for scalars.
        assert row["xla_bytes"]["update"]["alias"] > 0.99 * row["bytes"]["state"]
        assert f"{row['median_ms']:.1f}" in printed
        assert row["bar"] == {"single": None, "attn": 1.05, "full": 1.15}[name]

    single, full = rows["single"]["bytes"], rows["full"]["bytes"]
    assert single["parameters"] == model_bytes
    assert full["parameters"] == 2 * model_bytes
    assert single["parameters"] < rows["attn"]["bytes"]["parameters"] < full["parameters"]
    assert rows["full"]["explained_bytes"] == (
        2 * model_bytes + full["optimizer"] - single["optimizer"]
    )
    assert rows["single"]["explained_bytes"] == 0
    extra = rows["full"]["xla_peak_bytes"] - rows["single"]["xla_peak_bytes"]
    ratio = extra / rows["full"]["explained_bytes"]
    assert rows["full"]["xla_extra/explained"] == pytest.approx(ratio)
    assert 0.5 < ratio < 2


def test_steering(tmp_path):
    report, printed = run(tmp_path, "steering.py")
    assert_has_frame(report, "steering")
    rows = {row["what"]: row for row in report["results"]}
    assert rows["steered"]["base"] == "plain"
    assert rows["steered"]["bar"] == 1.02
    assert rows["policy"]["base"] == "plain policy"
    for row in rows.values():
        assert_is_comparison(row, rows[row["base"]])
        assert f"{row['median_ms']:.1f}" in printed
        if row["what"] != "mix":
            assert row["tokens/s"] == pytest.approx(4 * 3 / row["median_ms"] * 1e3)


def test_steering_mixes_replicas_that_differ():
    import steering

    from clp_jax.algorithm.conditioning import CLPParams

    moved = steering._spread(CLPParams({"w": jnp.ones((3, 2, 2))}, {"b": jnp.ones(2)}))
    np.testing.assert_allclose(moved.conditioned["w"][:, 0, 0], [1, 1.01, 1.02])
    np.testing.assert_array_equal(moved.shared["b"], 1)


def count_products(jaxpr):
    """2 m n k of every matrix product of a program without branches."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            lhs = equation.invars[0].aval.shape
            terms = math.prod(lhs[axis] for axis in contracted)
            total += 2 * terms * math.prod(equation.outvars[0].aval.shape)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += count_products(inner)
    return total


def test_flops_are_those_of_the_products_of_the_model(settings):
    import common
    import rollout

    module, prompts = common.make_module(settings), common.make_prompts(settings)
    keys, length = settings["prompt_length"], settings["completion_length"]
    params = common.param_shapes(module)
    tokens = jnp.ones((len(prompts), length), jnp.int32)

    def forward(params):
        return module.apply({"params": params}, prompts, tokens, tokens, enable_dropout=False)

    heads, layers = module.config.num_heads, module.config.num_decoder_layers
    biases = sum(2 * heads * 32 * (2 * n - 1) for n in (keys, length))
    # All at once, a query is multiplied with the keys of later tokens too, which are then masked.
    pairs = len(prompts) * layers * length * (length - 1) // 2
    unseen = pairs * 4 * heads * module.config.head_dim
    counted = count_products(jax.make_jaxpr(forward)(params).jaxpr)
    assert rollout.count_flops(settings) == counted - biases - unseen


def test_a_model_of_another_function_is_refused(monkeypatch, settings):
    import rollout

    class Other:
        def __init__(self, script, arguments):
            self._first = 5 if arguments["implementation"] == "ours" else 6

        def ask(self, method):
            assert method == "greedy"
            return [[self._first, *range(9)]]

        def close(self):
            pass

    monkeypatch.setattr(rollout.processes, "Worker", Other)
    with pytest.raises(RuntimeError, match=r"0\.900 of the greedy tokens of hf are those of ours"):
        rollout.measure(settings, ["ours", "hf"])


def test_a_policy_that_is_mixed_is_no_single_policy(module):
    import step

    from clp_jax.algorithm import conditioning, subset, train_step
    from clp_jax.algorithm.weighting import Weighting
    from clp_jax.models.decoding import Decoding

    clp = train_step.CLP(module, Decoding(1))
    reference = {"a": jnp.ones(2), "b": jnp.ones(3)}

    def check(subset):
        params = conditioning.init_clp_params(reference, subset, 1)
        step.check_unmixed(clp, params, reference, Weighting.of(0.1, [1.0]))

    check(subset.none())
    for mixed in (subset.full(), subset.matching("b")):
        with pytest.raises(RuntimeError, match="not used as they are"):
            check(mixed)


def test_the_small_size_is_that_of_the_anchors():
    import common

    params = common.param_shapes(common.make_module({"model": common.SMALL}))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 70_664_704


def test_turns_alternate_and_each_round_begins_with_another(monkeypatch):
    import processes

    monkeypatch.setattr(processes, "_PAUSE", 0.0)
    called = []
    turns = {name: lambda name=name: called.append(name) or len(called) for name in "abc"}
    assert processes.interleave(turns, 4) == {
        "a": [1, 6, 8, 10],
        "b": [2, 4, 9, 11],
        "c": [3, 5, 7, 12],
    }
    assert "".join(called) == "abcbcacababc"


def test_medians_and_ratios():
    import common

    compared = common.compare([3.0, 10.0, 4.0], [1.0, 2.0, 4.0])
    assert compared == {
        "median_ms": 4.0,
        "min_ms": 3.0,
        "times_ms": [3.0, 10.0, 4.0],
        "ratio": 2.0,
        "median_of_round_ratios": 3.0,
    }


def test_workers_answer_in_order_and_say_why_they_ended(tmp_path):
    import processes

    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import processes\n"
        "class Adder:\n"
        "    def add(self, a, b):\n"
        "        print('noise')\n"
        "        return a + b\n"
        "processes.serve(Adder)\n"
    )
    worker = processes.Worker(str(script), {})
    assert [worker.ask("add", i, 1) for i in range(3)] == [1, 2, 3]
    with pytest.raises(RuntimeError, match="(?s)a worker ended with 1:.*TypeError"):
        worker.ask("add", 1, "text")
    with pytest.raises(RuntimeError, match="a worker ended with 1"):
        worker.ask("add", 1, 1)
    worker.close()


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux")
def touch(size):
    """Writes to memory that goes back to the kernel, whatever the C library keeps."""
    with mmap.mmap(-1, size) as memory:
        for page in range(0, size, mmap.PAGESIZE):
            memory[page] = 1


def test_peak_memory_is_that_since_the_reset():
    import common

    touch(2**27)
    common.reset_peak()
    start = common.resident_mib()
    assert common.peak_mib() - start < 20
    touch(2**26)
    assert 60 < common.peak_mib() - start < 90
    assert common.resident_mib() - start < 20


def test_tables_are_aligned():
    import common

    rows = [{"a_b": "x", "c": 1.25}, {"a_b": "long", "c": None}]
    assert common.table(rows, {"a_b": "s", "c": ".1f"}) == "a b     c\nx     1.2\nlong    -"


@pytest.mark.parametrize("flag", ["--rounds=0", "--batch_size=-1", "--threads=x"])
def test_wrong_numbers_are_refused(flag, capsys):
    import common

    with pytest.raises(SystemExit):
        common.parser("", batch_size=4).parse_args([flag])
    assert flag.split("=")[1] in capsys.readouterr().err
