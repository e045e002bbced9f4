"""The files of Hugging Face directories: missing, malformed, truncated, in another format."""

import json

import numpy as np
import pytest
from hf_directories import (
    CONFIGS,
    OUR_QUERY,
    QUERY,
    WEIGHTS,
    assert_refused,
    assert_trees_equal,
    expected_shapes,
    make_params,
    write_directory,
)
from safetensors.numpy import load_file, save_file

from clp_jax.models import hf_checkpoints


@pytest.mark.parametrize(
    ("content", "part"),
    [(None, "is missing"), ("{", "is not readable as JSON"), ("[1]", "holds a list")],
)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_that_is_missing_or_malformed_is_refused(name, content, part, tmp_path):
    path = write_directory(tmp_path)
    if name != "config.json":
        (path / WEIGHTS).unlink()
        part = "has no weights; expected is model.safetensors or" if content is None else part
    if content is not None:
        (path / name).write_text(content)
    else:
        (path / name).unlink(missing_ok=True)
    assert hf_checkpoints.recognises(path)
    assert_refused(path, str(path if "no weights" in part else path / name), part)


def test_no_directory_is_not_recognised(tmp_path):
    assert not hf_checkpoints.recognises(tmp_path)
    assert not hf_checkpoints.recognises(tmp_path / "none")
    assert_refused(tmp_path / "none", str(tmp_path / "none"), "no such directory")


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("pytorch_model.bin", ""),
        ("pytorch_model-00001-of-00002.bin", ""),
        ("tf_model.h5", "from_tf=True"),
        ("flax_model.msgpack", "from_flax=True"),
    ],
)
def test_other_formats_are_refused_with_the_way_to_convert_them(name, option, tmp_path):
    path = write_directory(tmp_path)
    (path / WEIGHTS).rename(path / name)
    for config in ("there", "not there"):
        assert hf_checkpoints.recognises(path), config
        assert_refused(
            path, str(path / name), f"from_pretrained('{path}", option, "save_pretrained("
        )
        (path / "config.json").unlink(missing_ok=True)


def test_truncated_weights_are_refused(tmp_path):
    path = write_directory(tmp_path)
    whole = (path / WEIGHTS).read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    ends = {k: v["data_offsets"][1] for k, v in json.loads(whole[8:start]).items() if "." in k}
    end = start + ends[QUERY]
    num_cut = sum(other >= ends[QUERY] for other in ends.values())
    assert 1 < num_cut < len(ends)
    for size, part in (
        (len(whole) - 1, "the first of 1 tensors cut off is shared.weight (our token_embedder/"),
        (end - 1, f"first of {num_cut} tensors cut off is {QUERY} (our {OUR_QUERY}), which ends"),
        (end - 1, f"ends at byte {end}"),
        (100, "for its header alone"),
        (5, "bytes"),
        (0, "bytes"),
    ):
        (path / WEIGHTS).write_bytes(whole[:size])
        parts = (str(path / WEIGHTS), f"it has {size} bytes, expected are", part)
        assert_refused(path, *parts, *([str(len(whole))] if size > 100 else []))


def test_corrupt_weights_are_refused(tmp_path):
    path = write_directory(tmp_path)
    whole = (path / WEIGHTS).read_bytes()
    for content in (whole + b"more", whole[:8] + b"?" + whole[9:], b"\0" * 64):
        (path / WEIGHTS).write_bytes(content)
        assert_refused(path, str(path / WEIGHTS), "is not a whole safetensors file")


def test_shards_that_contradict_the_index_are_refused(tmp_path):
    config = CONFIGS["1.1-untied"]
    hf_checkpoints.save(tmp_path, make_params(config), config, max_shard_bytes=10**4)
    file = tmp_path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    shard = index["weight_map"][QUERY]
    tensors = load_file(tmp_path / shard)
    part = (QUERY, f"our {OUR_QUERY}", file.name)

    save_file({k: v for k, v in tensors.items() if k != QUERY}, tmp_path / shard)
    assert_refused(tmp_path, str(tmp_path / shard), "lacks", *part)
    (tmp_path / shard).write_bytes(b"")
    assert_refused(tmp_path, str(tmp_path / shard), "it has 0 bytes")
    (tmp_path / shard).unlink()
    first = next(name for name in index["weight_map"] if index["weight_map"][name] == shard)
    assert_refused(tmp_path, str(tmp_path / shard), "is missing", first, file.name)
    file.write_text(json.dumps({"weight_map": {QUERY: 1}}))
    assert_refused(tmp_path, str(file), "weight_map")


def test_the_index_tells_which_of_two_tensors_of_a_name_is_read(tmp_path):
    config = CONFIGS["1.1-untied"]
    hf_checkpoints.save(tmp_path, make_params(config), config, max_shard_bytes=10**4)
    shards = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    name = "shared.weight"  # in the first shard, so that it does not win by being the last
    for shard in set(shards.values()) - {shards[name]}:
        tensors = load_file(tmp_path / shard)
        save_file(tensors | {name: np.zeros((23, 12), np.float32)}, tmp_path / shard)
    params = hf_checkpoints.load(tmp_path, expected_shapes(config))
    assert_trees_equal(params, make_params(config))
    file = tmp_path / "model.safetensors.index.json"
    del shards[name]
    file.write_text(json.dumps({"weight_map": shards}))
    assert_refused(tmp_path, "shared.weight", "is in", "and in", f"{file.name} does not say which")
