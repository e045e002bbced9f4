"""T5X checkpoints in and out: both formats, dtypes, paths, and what is refused."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts
from flax import serialization
from t5x_directories import (
    INCOMPLETE,
    MALFORMED,
    QUERY,
    QUERY_FILE,
    SHAPES,
    SPECS,
    assert_identical,
    flatten,
    like,
    make_params,
    unflatten,
    write_legacy,
    write_orbax,
)

from clp_jax.models import t5x_checkpoints


@pytest.fixture
def params():
    return make_params()


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("version", [2, 3])
def test_legacy(tmp_path, params, spec, version):
    inline = ["decoder/decoder_norm/scale", "token_embedder/embedding"]
    path = write_legacy(tmp_path / "checkpoint_7", params, SPECS[spec], inline, version)
    assert_identical(t5x_checkpoints.load(str(path), params), params)
    assert t5x_checkpoints.shapes(str(path)) == like(params, np.float32)


@pytest.mark.parametrize("inline", [[], SHAPES])
@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("wanted", ["bfloat16", "float16", "float32"])
def test_dtypes(tmp_path, params, stored, wanted, driver, inline):
    params = jax.tree.map(lambda x: x.astype(stored), params)
    path = str(write_legacy(tmp_path / "checkpoint_7", params, inline=inline, driver=driver))
    assert t5x_checkpoints.shapes(path) == like(params, stored)
    found = t5x_checkpoints.load(path, like(params, wanted))
    assert_identical(found, jax.tree.map(lambda x: x.astype(wanted), params))


def test_only_the_expected_leaves_are_read(tmp_path, params):
    path = write_legacy(tmp_path / "checkpoint_7", params)
    for chunk in (path / QUERY_FILE).glob("*.*"):
        if chunk.name != ".zarray":
            chunk.unlink()
    assert t5x_checkpoints.shapes(str(path)) == like(params, np.float32)
    del params["encoder"]["layers_0"]
    assert_identical(t5x_checkpoints.load(str(path), params), params)


def test_where_the_path_may_point(tmp_path, params, monkeypatch):
    for step in (2, 9, 10):
        of_step = jax.tree.map(lambda x, step=step: x + step, params)
        write_legacy(tmp_path / f"checkpoint_{step}", of_step)
    (tmp_path / "checkpoint_11.tmp-123").mkdir()
    (tmp_path / "checkpoint_11.tmp-123" / "checkpoint").write_bytes(b"half")
    (tmp_path / "checkpoint_12").write_bytes(b"no directory")
    nine, ten = (jax.tree.map(lambda x, step=step: x + step, params) for step in (9, 10))
    for path, expected in {
        tmp_path: ten,
        f"{tmp_path}/": ten,
        tmp_path / "checkpoint_9": nine,
        f"{tmp_path}/checkpoint_9/": nine,
        tmp_path / "checkpoint_9" / "checkpoint": nine,
    }.items():
        assert t5x_checkpoints.recognises(str(path))
        assert_identical(t5x_checkpoints.load(str(path), params), expected)
    monkeypatch.chdir(tmp_path / "checkpoint_9")
    for path in (".", "checkpoint", "../checkpoint_9"):
        assert t5x_checkpoints.recognises(path)
        assert_identical(t5x_checkpoints.load(path, params), nine)
    shutil.copytree(tmp_path / "checkpoint_2", tmp_path / "checkpoint")  # a directory of that name
    assert_identical(
        t5x_checkpoints.load(str(tmp_path / "checkpoint"), params),
        jax.tree.map(lambda x: x + 2, params),
    )


def test_what_is_not_recognised(tmp_path):
    (tmp_path / "hf").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "hf" / name).touch()
    (tmp_path / "run" / "checkpoints" / "5" / "state").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint_5.tmp-1").mkdir()
    for path in ("hf", "hf/config.json", "run", "run/checkpoints", "run/checkpoints/5", "nowhere"):
        assert not t5x_checkpoints.recognises(str(tmp_path / path)), path
    assert t5x_checkpoints.recognises("gs://bucket/anything")
    (tmp_path / "checkpoint_5").mkdir()
    assert t5x_checkpoints.recognises(str(tmp_path / "checkpoint_5"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_save_writes_the_format(tmp_path, params, dtype, monkeypatch):
    monkeypatch.setattr(t5x_checkpoints, "_CHUNK_BYTES", 20)
    params["encoder"]["zeros"] = np.zeros((6, 3), np.float32)
    params["encoder"]["scalar"] = np.float32(1.3)
    params["decoder"]["on_device"] = jnp.linspace(-3.0, 3.0, 7)
    path = tmp_path / "new" / "checkpoint_7"
    t5x_checkpoints.save(path, params, step=7, dtype=dtype)
    # Read by a reader of its own.
    content = serialization.msgpack_restore((path / "checkpoint").read_bytes())
    assert content["version"] == 3
    assert content["optimizer"]["state"]["step"] == 7
    for name, array in flatten(params).items():
        spec = content["optimizer"]["target"]
        for key in name.split("/"):
            spec = spec[key]
        # What t5x looks for in a spec.
        assert ts.Spec(spec).to_json()["metadata"]["shape"] == list(array.shape)
        assert {"chunks", "compressor"} <= spec["metadata"].keys()
        assert spec["kvstore"]["path"] == f"target.{name.replace('/', '.')}/"
        spec["kvstore"]["path"] = f"{path}/{spec['kvstore']['path']}"
        spec["fill_missing_data_reads"] = False
        found = ts.open(spec).result().read().result()
        assert found.dtype == jnp.dtype(dtype)
        assert found.tobytes() == np.asarray(array).astype(dtype).tobytes(), name
    assert len(list((path / "target.encoder.zeros").glob("*.*"))) > 2  # chunks and .zarray
    cast = jax.tree.map(lambda x: np.asarray(x).astype(dtype), params)
    assert_identical(t5x_checkpoints.load(str(path), cast), cast)


def test_what_save_refuses(tmp_path, params):
    with pytest.raises(ValueError, match="unknown dtype 'float64'.*float16"):
        t5x_checkpoints.save(tmp_path / "new", params, dtype="float64")
    assert not (tmp_path / "new").exists()
    t5x_checkpoints.save(tmp_path / "new", params)
    with pytest.raises(ValueError, match=r"target\..*\(.*/.*\) cannot be .*EXISTS"):
        t5x_checkpoints.save(tmp_path / "new", params)


@pytest.mark.parametrize("case", [*MALFORMED, *INCOMPLETE])
def test_malformed(tmp_path, params, case):
    path = write_legacy(tmp_path / "checkpoint_7", params)
    damage, message = {**MALFORMED, **INCOMPLETE}[case]
    damage(path)
    assert t5x_checkpoints.recognises(str(path))
    if case in MALFORMED:
        with pytest.raises(ValueError, match=message) as raised:
            t5x_checkpoints.shapes(str(path))
        assert str(tmp_path) in str(raised.value)
    else:
        t5x_checkpoints.shapes(str(path))
    with pytest.raises(ValueError, match=message) as raised:
        t5x_checkpoints.load(str(path), params)
    assert len(str(raised.value)) < 600 + len(str(tmp_path)) * 3


def test_scanned_layers_of_one_axis(tmp_path):
    scanned = unflatten({"encoder/layers/pre_mlp_layer_norm/scale": np.ones((4, 12), np.float32)})
    path = write_legacy(tmp_path / "checkpoint_7", scanned)
    with pytest.raises(ValueError, match=r"layers/pre_mlp.*\[4, 12\], as of layers stacked"):
        t5x_checkpoints.shapes(str(path))


@pytest.mark.parametrize("ocdbt", [False, True])
@pytest.mark.parametrize("zarr3", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_orbax(tmp_path, params, ocdbt, zarr3, dtype):
    params["decoder"]["zeros"] = np.zeros((6, 3), np.float32)
    path = write_orbax(tmp_path, params, jnp.dtype(dtype), use_ocdbt=ocdbt, use_zarr3=zarr3)
    stored = jax.tree.map(lambda x: x.astype(dtype), params)
    for place in (path, tmp_path):
        assert t5x_checkpoints.recognises(str(place))
        assert t5x_checkpoints.shapes(str(place)) == like(params, dtype)
        assert_identical(t5x_checkpoints.load(str(place), stored), stored)
    single = jax.tree.map(lambda x: x.astype(np.float32), stored)
    assert_identical(t5x_checkpoints.load(str(path), params), single)


def test_malformed_orbax(tmp_path, params):
    plain = write_orbax(tmp_path / "plain", params, use_ocdbt=False)
    (plain / "state" / QUERY_FILE / "0.0").unlink()
    with pytest.raises(ValueError, match=rf"plain.*{QUERY_FILE} \({QUERY}\) cannot.*missing"):
        t5x_checkpoints.load(str(plain), params)
    (plain / "state" / QUERY_FILE / ".zarray").write_text("{")
    with pytest.raises(ValueError, match=rf"plain.*{QUERY_FILE} \({QUERY}\) cannot.*Invalid JSON"):
        t5x_checkpoints.shapes(str(plain))
    for folder in (plain / "state").glob("target.*"):
        shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"plain.*/state has no arrays `target.NAME`"):
        t5x_checkpoints.shapes(str(plain))

    ocdbt = write_orbax(tmp_path / "ocdbt", params, use_ocdbt=True)
    refused = 0
    for file in [file for file in (ocdbt / "state").rglob("d/*") if file.is_file()]:
        content = file.read_bytes()
        file.unlink()
        # What is in which file is orbax's affair: the optimizer's may go.
        try:
            assert_identical(t5x_checkpoints.load(str(ocdbt), params), params)
        except ValueError as error:
            assert "ocdbt/checkpoint_7/state" in str(error)  # noqa: PT017
            refused += 1
        file.write_bytes(content)
    assert refused >= 1
    (ocdbt / "state" / "manifest.ocdbt").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"ocdbt/checkpoint_7/state.*manifest"):
        t5x_checkpoints.shapes(str(ocdbt))


@pytest.fixture
def t5x_state(request):
    """Parameters, and the state of their training by T5X."""
    pytest.importorskip("t5x.checkpoints")
    from flax.linen import partitioning
    from t5x import adafactor, train_state

    reference = request.getfixturevalue("reference")
    axes = {
        f"{name}_axes": partitioning.AxisMetadata(("embed", "mlp")[-array.ndim :])
        for name, array in flatten(reference).items()
    }
    rules = adafactor.standard_logical_factor_rules()
    state = train_state.FlaxOptimTrainState.create(
        adafactor.Adafactor(1e-3, logical_factor_rules=rules),
        {"params": reference, "params_axes": unflatten(axes)},
    )
    return reference, state


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_t5x_itself(tmp_path, t5x_state, dtype):
    from t5x import checkpoints, partitioning

    reference, state = t5x_state
    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    stored = jax.tree.map(lambda x: np.asarray(x).astype(dtype), reference)
    (tmp_path / "legacy").mkdir()
    legacy = checkpoints.Checkpointer(
        state, partitioner, str(tmp_path / "legacy"), save_dtype=jnp.dtype(dtype)
    )
    legacy.save(state)
    assert_identical(t5x_checkpoints.load(str(tmp_path / "legacy"), stored), stored)

    (tmp_path / "orbax").mkdir()
    orbax = checkpoints.OrbaxCheckpointManagerInterface(
        str(tmp_path / "orbax"), state, partitioner, save_dtype=jnp.dtype(dtype)
    )
    orbax.save(state)
    orbax.close()
    assert_identical(t5x_checkpoints.load(str(tmp_path / "orbax"), stored), stored)

    t5x_checkpoints.save(tmp_path / "ours" / "checkpoint_7", reference, 7, dtype)
    for place in ("ours", "ours/checkpoint_7", "ours/checkpoint_7/checkpoint"):
        found = checkpoints.load_t5x_checkpoint(str(tmp_path / place))
        assert_identical(found["target"], stored)
        assert found["state"]["step"] == 7
