import subprocess
import sys

import pytest

from clp_jax.rewards.registry import BUILT_IN, make_reward_stack

MODULE = """
def brevity(prompts, completions, **columns):
    return [-float(len(c)) for c in completions]

brevity.range = (-10, 0)
brevity.columns = ("document",)

def length(prompts, completions):
    return [float(len(c)) for c in completions]

class Constant:
    range = (0, 4)
    made = 0

    def __init__(self):
        type(self).made += 1

    def __call__(self, prompts, completions):
        return [2.0] * len(completions)

class NeedsArgument:
    def __init__(self, path):
        pass

    def __call__(self, prompts, completions):
        return [0.0] * len(completions)

number = 3
"""


@pytest.fixture
def user(tmp_path, monkeypatch):
    """A user's own package, importable as `my_rewards.scores`."""
    package = tmp_path / "my_rewards"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "scores.py").write_text(MODULE)
    (package / "other.py").write_text("def length(prompts, completions):\n    return []\n")
    (package / "broken.py").write_text("1 / 0\n")
    (package / "needs.py").write_text("import a_library_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_rewards.scores"
    for name in [m for m in sys.modules if m.partition(".")[0] == "my_rewards"]:
        del sys.modules[name]


def score(stack, completions=("a", "bb"), **columns):
    return stack(["p"] * len(completions), completions, columns)


def test_a_users_function_and_class(user):
    stack = make_reward_stack((f"{user}.brevity", f"{user}.Constant", f"{user}.length"))
    assert stack.names == ("brevity", "Constant", "length")
    assert stack.ranges == {"brevity": (-10, 0), "Constant": (0, 4), "length": (0, 1)}
    assert stack.columns == ("document",)
    scores = score(stack, document=["d", "d"])
    assert scores.raw.tolist() == [[-1, 2, 1], [-2, 2, 2]]
    assert scores.normalised[:, 1].tolist() == [0.5, 0.5]


def test_callables(user):
    from importlib import import_module

    module = import_module(user)
    stack = make_reward_stack(
        [module.length, module.Constant, "both"],
        mixtures={"both": {"length": 0.5, "Constant": 0.5}},
    )
    assert stack.names == ("length", "Constant", "both")
    assert score(stack).raw.tolist() == [[1, 2, 0.75], [2, 2, 1.25]]
    assert module.Constant.made == 1
    assert make_reward_stack([module.Constant()]).names == ("Constant",)


def test_rouge_by_name():
    stack = make_reward_stack(("rouge",))
    assert stack.ranges == {"rouge": (19, 29)}
    assert stack.columns == ("summary",)
    stack.close()


def test_ranges(user):
    stack = make_reward_stack(
        ("rouge", f"{user}.length"), ranges={"rouge": (10, 40), f"{user}.length": (-1, 3)}
    )
    assert stack.ranges == {"rouge": (10, 40), "length": (-1, 3)}
    assert make_reward_stack((f"{user}.length",), ranges={"length": [0, 5]}).ranges == {
        "length": (0, 5)
    }


def test_a_mixture_with_ranges_of_its_components(user):
    stack = make_reward_stack(
        ("nli_len", f"{user}.length"),
        ranges={"nli": (-20, 0), "length": (0, 8)},
        mixtures={
            "nli_len": {"nli": 0.9, f"{user}.length": 0.1},
            "not used": {"nothing of that name": 1.0},
        },
        components={"nli": f"{user}.brevity", "not used either": "no.such.module"},
    )
    assert stack.names == ("nli_len", "length")
    assert stack.ranges == {"nli_len": (0, 1), "length": (0, 8)}
    assert stack.columns == ("document",)
    scores = score(stack, document=["d", "d"])
    expected = [0.9 * (20 - n) / 20 + 0.1 * n / 8 for n in (1, 2)]
    assert scores.normalised[:, 0].tolist() == pytest.approx(expected)


def test_components_rename_and_replace_built_in_rewards(user):
    from clp_jax.rewards.rouge import RougeLsum

    inline = RougeLsum(workers=0)
    stack = make_reward_stack(
        ("rouge", "wide"), {"wide": (0, 100)}, components={"rouge": inline, "wide": "rouge"}
    )
    assert stack.ranges == {"rouge": (19, 29), "wide": (0, 100)}
    assert stack.rewards[0].reward is inline
    stack.close()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"names": ()}, "REWARDS is empty"),
        ({"names": "rouge"}, r"REWARDS is 'rouge'; expected a tuple"),
        ({"names": None}, "REWARDS is None; expected a tuple"),
        ({"names": ("rogue",)}, r"unknown reward 'rogue' \(from REWARDS\); nearest: rouge, "),
        ({"names": ("rogue",), "source": "--gin.REWARDS"}, r"\(from --gin.REWARDS\)"),
        ({"names": ("rouge", "rouge")}, "REWARDS names the reward 'rouge' twice"),
        ({"names": (3,)}, "REWARDS: 3 is neither the name of a reward nor a function"),
        ({"names": (lambda p, c: [],)}, "'<lambda>' .*cannot name a reward"),
        ({"names": ("no_such_package.f",)}, "no module 'no_such_package' on the Python path"),
        ({"names": ("my_rewards.scrs.f",)}, "no module 'my_rewards.scrs' on"),
        ({"names": ("my_rewards.broken.f",)}, "importing 'my_rewards.broken' raised ZeroDiv"),
        (
            {"names": ("my_rewards.needs.f",)},
            "importing 'my_rewards.needs' raised .*a_library_that_is_not_there",
        ),
        (
            {"names": ("my_rewards.scores.brevty",)},
            r"unknown attribute 'brevty' \(from module 'my_rewards.scores'\); nearest: brevity",
        ),
        ({"names": (".f",)}, "reward 'f' .*raised ValueError"),
        (
            {"names": ("my_rewards.scores.NeedsArgument",)},
            r"NeedsArgument\(\) raised TypeError: .*path",
        ),
        ({"names": ("my_rewards.scores.number",)}, r"reward 'number' is 3 \(int\)"),
        (
            {"names": ("my_rewards.scores.length", "my_rewards.other.length")},
            "two rewards are called 'length': 'my_rewards.scores.length' and 'my_rewards.other",
        ),
        (
            {"names": ("rouge",), "ranges": {"rogue": (0, 1)}},
            r"unknown reward 'rogue' \(from ranges\); nearest: rouge",
        ),
        ({"names": ("rouge",), "ranges": {"rouge": (29, 19)}}, r"'rouge' is \(29, 19\)"),
        (
            {
                "names": ("my_rewards.scores.length",),
                "ranges": {"length": (0, 1), "my_rewards.scores.length": (0, 2)},
            },
            "ranges names the reward 'length' twice",
        ),
    ],
)
def test_bad_names(user, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_reward_stack(**kwargs)


@pytest.mark.parametrize(
    ("mixtures", "message"),
    [
        ({"mix": {"rouge": 0.5}}, "mixture 'mix': .*sum to 0.5"),
        ({"mix": {"rouge": -1.0}}, "mixture 'mix': .*weight of 'rouge' is -1.0"),
        ({"mix": {"rogue": 1.0}}, r"unknown reward 'rogue' \(from mixture 'mix'\); nearest: rouge"),
        ({"mix": {"two": 1.0}, "two": {"rouge": 1.0}}, "'mix' contains the mixture 'two'"),
        ({"mix": {"mix": 1.0}}, "'mix' contains the mixture 'mix'"),
        ({"mix": {"rouge": 1.0}, "rouge": {"mix": 1.0}}, "mixture 'rouge': a reward of that name"),
        (
            {"mix": {"my_rewards.scores.length": 0.5, "length": 0.5}},
            "names the reward 'length' twice",
        ),
        ({"mix": {"my_rewards.other.length": 1.0}}, "two rewards are called 'length'"),
    ],
)
def test_bad_mixtures(user, mixtures, message):
    components = {"length": f"{user}.length"}
    with pytest.raises(ValueError, match=message):
        make_reward_stack(("length", "mix"), mixtures=mixtures, components=components)


@pytest.mark.parametrize("order", [0, 1])
def test_a_mixture_and_a_function_of_one_name(user, order):
    names = (f"{user}.length", "length")[:: 1 - 2 * order]
    with pytest.raises(ValueError, match=r"a reward of that name exists|two rewards are called"):
        make_reward_stack(names, mixtures={"length": {"rouge": 1.0}})


def test_the_registry_loads_nothing_that_is_not_used():
    program = "import sys, clp_jax.rewards.registry; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert not loaded & {"rouge_score", "nltk", "tensorflow", "seqio", "clp_jax.data.briefs"}


def test_every_built_in_reward_loads():
    stack = make_reward_stack(tuple(BUILT_IN))
    assert stack.names == ("rouge", "briefs_entailment", "briefs_quality")
    assert set(stack.columns) == {"summary", "document"}
    stack.close()


def test_ranges_of_known_rewards_that_are_not_in_use_are_passed_over():
    stack = make_reward_stack(("rouge",), ranges={"briefs_quality": (0, 2), "rouge": (1, 2)})
    assert stack.ranges == {"rouge": (1, 2)}
