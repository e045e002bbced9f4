"""Reward models on disk, in a run's stack, and as a command that scores files."""

import json

import jax
import numpy as np
import pytest
import smoke
from reward_models import CONFIG, HEADS, random_reward_model

from clp_jax.data import tasks
from clp_jax.data.briefs import corpus
from clp_jax.models import hf_checkpoints
from clp_jax.rewards import saved, scoring
from clp_jax.rewards.heads import NLIHead, PreferenceHead
from clp_jax.rewards.model import InputTemplate
from clp_jax.rewards.rouge import RougeLsum
from clp_jax.runs import training

RECORDS = corpus.generate("validation", 5)
DOCUMENTS, SUMMARIES = ([r[key] for r in RECORDS] for key in ("document", "summary"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Random reward models, {kind: MODEL_DIR}, and the parameters of both."""
    made = {}
    for kind in HEADS:
        made[kind], params = random_reward_model(tmp_path_factory.mktemp(kind), kind)
    return made, params


def test_what_was_saved_is_read(folders):
    made, params = folders
    for kind, folder in made.items():
        for path in (folder, folder / saved.FOLDER):
            read = saved.load(path, kind, {})
            assert read.model.head == HEADS[kind]
            assert read.model.template == InputTemplate((7, 8), (9,), 80, 1)
            assert read.model.module.config == CONFIG
            jax.tree.map(np.testing.assert_array_equal, read.params(read.model.shapes()), params)
            assert saved.kind_of(path) == kind
        fields = json.loads((folder / saved.FOLDER / "reward.json").read_text())
        assert fields["report"] == {"accuracy": 0.5}


def test_settings_in_place_of_the_saved_ones(folders):
    nli = saved.NLI(
        str(folders[0]["nli"]), label_tokens={"entailment": 11, "no": 12}, floor=-3.0,
        before="The", max_length=60, over_labels=True, range=(-3, 0),
    )  # fmt: skip
    assert nli.model.head == NLIHead(("entailment", "no"), (11, 12), over_labels=True, floor=-3.0)
    the = tuple(tasks.briefs_vocabulary().encode("The"))
    assert nli.model.template == InputTemplate(the, (9,), 60, 1)
    assert nli.range == (-3, 0)
    preference = saved.Preference(str(folders[0]["preference"]), token=4, between="The</s>")
    assert preference.model.head == PreferenceHead(4)
    assert preference.model.template.between == (*the, 1)


def test_a_hugging_face_directory_is_a_reward_model(folders, tmp_path):
    _, params = folders
    hf_checkpoints.save(tmp_path / "hf", params, CONFIG)
    with pytest.raises(ValueError, match=r"vocabulary is missing: there is no .*spiece\.model"):
        saved.NLI(str(tmp_path / "hf"), label_tokens={"entailment": 5, "other": 9})
    (tmp_path / "hf" / "spiece.model").write_bytes(tasks.briefs_vocabulary().sp_model)
    nli = saved.NLI(str(tmp_path / "hf"), label_tokens={"entailment": 5, "other": 9}, max_length=80)
    ours = saved.NLI(str(folders[0]["nli"]), before="premise:", between="hypothesis:")
    expected, _ = ours.score_texts(DOCUMENTS, SUMMARIES)
    np.testing.assert_array_equal(nli.score_texts(DOCUMENTS, SUMMARIES)[0], expected)


def test_what_cannot_be_read_is_named(folders, tmp_path):
    made, _ = folders
    with pytest.raises(ValueError, match="set NLI_MODEL_DIR to the MODEL_DIR of clp_jax.fit_rewar"):
        saved.NLI()
    with pytest.raises(ValueError, match=r"holds no reward model: neither .*reward\.json"):
        saved.NLI(str(tmp_path))
    with pytest.raises(ValueError, match="of kind 'nli', not 'preference'"):
        saved.Preference(str(made["nli"]))
    source = made["nli"] / saved.FOLDER

    def damaged(name):
        folder = tmp_path / name
        folder.mkdir()
        for file in ("reward.json", "spiece.model"):
            (folder / file).write_bytes((source / file).read_bytes())
        return folder

    folder = damaged("json")
    (folder / "reward.json").write_text("{")
    with pytest.raises(ValueError, match=r"json/reward\.json is not the description of a reward"):
        saved.NLI(str(folder))
    (folder / "reward.json").write_text('{"kind": "nli"}')
    with pytest.raises(ValueError, match=r"reward\.json lacks head, input, t5"):
        saved.NLI(str(folder))
    folder = damaged("vocabulary")
    (folder / "spiece.model").unlink()
    with pytest.raises(ValueError, match=r"vocabulary is missing: there is no .*spiece\.model"):
        saved.NLI(str(folder))
    (folder / "spiece.model").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"spiece\.model is not a SentencePiece model"):
        saved.NLI(str(folder))
    folder = damaged("params")
    with pytest.raises(ValueError, match="params: there is no such directory"):
        saved.NLI(str(folder))


# In a run


def nli_run(folder, folders, *bindings):
    return smoke.configured(
        folder, f"NLI_MODEL_DIR = {str(folders[0]['nli'])!r}",
        f"TLDR_MODEL_DIR = {str(folders[0]['preference'])!r}",
        "REWARDS = ('nli', 'rouge', 'tldr', 'mixed')",
        "REWARD_MIXTURES = {'mixed': {'nli': 0.9, 'rouge': 0.1}}", *bindings,
    )  # fmt: skip


def test_a_run_trains_on_the_three_rewards_of_the_paper(folders, tmp_path):
    run = nli_run(tmp_path / "run", folders, "TRAIN_STEPS = 2", "STATS_PERIOD = 1")
    assert run.model.rewards.describe().splitlines() == [
        "nli: device, (-7, 0) -> (0, 1)",
        "rouge: host, (52, 84) -> (0, 1)",
        "tldr: device, (-1.6, 2) -> (0, 1)",
        "mixed: 0.9 nli + 0.1 rouge, (0, 1) -> (0, 1)",
    ]
    training.check(run)
    training.train(run)
    row = smoke.lines(tmp_path / "run" / "metrics.jsonl")[0]
    assert row["rewards/nli"] == pytest.approx((row["rewards_raw/nli"] + 7) / 7, rel=1e-5)
    mixed = 0.9 * row["rewards/nli"] + 0.1 * row["rewards/rouge"]
    assert row["rewards/mixed"] == pytest.approx(mixed, rel=1e-5)
    for name in ("nli", "tldr"):
        assert row[f"rewards_own/{name}/truncated_documents"] == 0
    for name in ("nli", "rouge", "tldr"):
        assert row[f"timing/reward_seconds/{name}"] >= 0
    assert 0 <= row["timing/reward_hidden/rouge"] <= 1


def test_tokens_and_text_give_one_score(folders, tmp_path):
    """A completion's tokens on the device, and its text on the host."""
    stack = nli_run(tmp_path, folders).model.rewards
    vocabulary = tasks.briefs_vocabulary()

    def tokens(texts):
        rows = [[*vocabulary.encode(text), 1] for text in texts]
        width = max(map(len, rows))
        return np.array([row + [0] * (width - len(row)) for row in rows], np.int32)

    prompts, completions = tokens([f"summarize: {d}" for d in DOCUMENTS]), tokens(SUMMARIES)
    columns = {"document": DOCUMENTS, "summary": SUMMARIES[::-1]}
    on_device = stack(["?"] * 5, SUMMARIES, columns, prompts, completions, completions > 0)
    on_host = scoring.of_text(stack)(["?"] * 5, SUMMARIES, columns)
    np.testing.assert_allclose(on_device.raw, on_host.raw, rtol=1e-5, atol=1e-5)
    stack.close()


def test_a_run_that_does_not_fit_stops_before_it_starts(folders, tmp_path):
    prefix = "tasks.briefs.prompt_prefix = 'tl: '"
    with pytest.raises(ValueError, match="reward 'nli': .* begin with 'summarize: ', .* 'tl: '"):
        training.check(nli_run(tmp_path, folders, prefix))
    with pytest.raises(ValueError, match="reward 'nli': completions of up to 24 tokens leave no"):
        training.check(nli_run(tmp_path, folders, "saved.NLI.max_length = 28"))
    for bounds in ((0, 0), (1, -1)):
        with pytest.raises(ValueError, match="range of reward 'nli' is .*low < high"):
            nli_run(tmp_path, folders, f"REWARD_RANGES = {{'nli': {bounds}}}")
    with pytest.raises(ValueError, match=r"unknown reward 'nil' \(from REWARDS\); nearest: nli"):
        smoke.configured(tmp_path, "REWARDS = ('nil',)")


# The command


def test_the_command_scores_a_file(folders, tmp_path):
    lines = [{**r, "reference": s} for r, s in zip(RECORDS, SUMMARIES[::-1], strict=True)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = smoke.command(
        "clp_jax.score", f"--rewards=judge={folders[0]['nli']},rouge", "--range=rouge=10,60",
        f"--input={tmp_path / 'in.jsonl'}", f"--output={tmp_path / 'out.jsonl'}",
        "--reference_field=reference",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = smoke.lines(tmp_path / "out.jsonl")
    assert [{k: row[k] for k in lines[0]} for row in rows] == lines
    nli, _ = saved.NLI(str(folders[0]["nli"])).score_texts(DOCUMENTS, SUMMARIES)
    rouge = RougeLsum(workers=0)([""] * 5, SUMMARIES, summary=SUMMARIES[::-1])
    for row, n, r in zip(rows, nli, rouge, strict=True):
        assert row["rewards_raw"] == pytest.approx({"judge": n, "rouge": r}, abs=1e-4)
        normalised = {"judge": (n + 7) / 7, "rouge": (r - 10) / 50}
        assert row["rewards"] == pytest.approx(normalised, abs=1e-4)
    assert f"{np.mean(nli):.4g}" in done.stderr


@pytest.mark.parametrize(
    ("rewards", "flags", "message"),
    [
        ("ruge", [], "unknown reward 'ruge'"),
        ("nli=nowhere", [], "nowhere holds no reward model"),
        ("rouge", [], "'rouge' needs a column .*'summary' .*--reference_field names ROUGE's"),
        ("rouge", ["--range=rouge=3"], "range of reward 'rouge' is"),
        ("rouge", ["--range=rouge=a,b"], "--range=rouge=a,b is not NAME=LOW,HIGH"),
        ("rouge", ["--reference_field=refrence"], "unknown field 'refrence'"),
    ],
)
def test_what_the_command_refuses(rewards, flags, message, tmp_path, capfd):
    from clp_jax import score

    (tmp_path / "in.jsonl").write_text('{"document": "a", "summary": "b", "reference": "c"}\n')
    with pytest.raises(SystemExit) as stopped:
        score.main([f"--rewards={rewards}", f"--input={tmp_path / 'in.jsonl'}", *flags])
    assert stopped.value.code == 2
    import re

    assert re.search(message, capfd.readouterr().err)
