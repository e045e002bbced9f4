import shutil

import fake_gcs
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from flax import serialization, traverse_util

from clp_jax.models import t5x_checkpoints

SHAPES = {
    "token_embedder/embedding": (5, 4),
    "encoder/layers_0/attention/query/kernel": (4, 6),
    "encoder/relpos_bias/rel_embedding": (2, 3),
    "decoder/logits_dense/kernel": (4, 5),
    "decoder/decoder_norm/scale": (4,),
}
QUERY = "encoder/layers_0/attention/query/kernel"
QUERY_FILE = "target.encoder.layers_0.attention.query.kernel"


def unflatten(flat):
    return traverse_util.unflatten_dict(flat, sep="/")


def flatten(tree):
    return traverse_util.flatten_dict(tree, sep="/")


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return unflatten({k: rng.normal(size=v).astype(np.float32) for k, v in SHAPES.items()})


def like(tree, dtype):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), tree)


def assert_identical(found, expected):
    found, expected = flatten(found), flatten(expected)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert np.asarray(found[name]).tobytes() == np.asarray(array).tobytes(), name


def relative(file):
    return {"kvstore": {"driver": "file", "path": f"{file}/"}}


SPECS = {
    "relative": relative,
    "no slash": lambda file: {"kvstore": {"driver": "file", "path": file}},
    "gfile": lambda file: {"kvstore": {"driver": "gfile", "path": f"/cns/home/ck_1/{file}/"}},
    "bucket": lambda file: {
        "kvstore": {"driver": "gcs", "bucket": "t5x-dummy-bucket", "path": file}
    },
    "moved": lambda file: {"kvstore": {"driver": "file", "path": f"/gone/checkpoint_3/{file}"}},
    "old": lambda file: {"kvstore": {"driver": "file"}, "path": file},
}


def write_array(folder, file, array, driver="zarr"):
    """Writes an array in chunks of 3 along each axis; returns the metadata of T5X's spec."""
    chunks = [min(size, 3) for size in array.shape]
    metadata = {"shape": list(array.shape), "chunks": chunks, "compressor": {"id": "gzip"}}
    if driver == "zarr3":
        grid = {"name": "regular", "configuration": {"chunk_shape": chunks}}
        metadata = {"shape": list(array.shape), "chunk_grid": grid}
    spec = {"driver": driver, "dtype": array.dtype.name, "metadata": metadata}
    kvstore = {"driver": "file", "path": f"{folder}/{file}/"}
    ts.open({**spec, "kvstore": kvstore}, create=True).result().write(array).result()
    return metadata


def write_legacy(folder, params, spec=relative, inline=(), version=3, driver="zarr"):
    """Writes what T5X's Checkpointer writes, from the format's description."""
    folder.mkdir(parents=True)
    target = {}
    for name, array in flatten(params).items():
        file = f"target.{name.replace('/', '.')}"
        target[name] = array
        if name not in inline:
            metadata = write_array(folder, file, array, driver)
            target[name] = {"driver": driver, "metadata": metadata, **spec(file)}
            target[name]["dtype"] = array.dtype.name
    # Optimizer state, which nobody may ask for: its arrays are not there.
    gone = {"driver": "zarr", "metadata": {"shape": [4]}, **spec("state.param_states.gone")}
    state = {"step": np.int32(7), "param_states": {"decoder": {"m": gone, "v": None}}}
    write_index(
        folder, {"version": version, "optimizer": {"target": unflatten(target), "state": state}}
    )
    return folder


def write_index(folder, content):
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(content))


def edit_index(folder, edit):
    content = serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    write_index(folder, edit(content) or content)


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


def chunk_of(path):
    return path / QUERY_FILE / "0.0"


def bad_header(path):
    (path / QUERY_FILE / ".zarray").write_text("{")


def other_shape(path):
    shutil.rmtree(path / QUERY_FILE)
    write_array(path, QUERY_FILE, np.zeros((4, 7), np.float32))


def integers(path):
    shutil.rmtree(path / QUERY_FILE)
    write_array(path, QUERY_FILE, np.zeros((4, 6), np.uint16))


def truncated_index(path):
    content = (path / "checkpoint").read_bytes()
    (path / "checkpoint").write_bytes(content[: len(content) // 2])


def set_query(path, value):
    def edit(content):
        content["optimizer"]["target"]["encoder"]["layers_0"]["attention"]["query"]["kernel"] = (
            value
        )

    edit_index(path, edit)


def without_version(content):
    del content["version"]


MALFORMED = {
    "no index": (
        lambda path: (path / "checkpoint").unlink(),
        r"checkpoint_7 is no T5X checkpoint: it has no file `checkpoint`",
    ),
    "empty index": (
        lambda path: (path / "checkpoint").write_bytes(b""),
        r"checkpoint_7/checkpoint is truncated or no msgpack.*\(0 bytes\)",
    ),
    "truncated index": (truncated_index, r"checkpoint_7/checkpoint is truncated or no msgpack"),
    "text": (
        lambda path: (path / "checkpoint").write_text("hello, all of you"),
        r"checkpoint_7/checkpoint is truncated or no msgpack",
    ),
    "TensorFlow": (
        lambda path: (path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-1"'),
        r"checkpoint_7/checkpoint is TensorFlow's; .*convert_tf_checkpoint",
    ),
    "version 4": (
        lambda path: edit_index(path, lambda content: {**content, "version": 4}),
        r"checkpoint_7/checkpoint is of version 4; valid are 2, 3",
    ),
    "no version": (
        lambda path: edit_index(path, without_version),
        r"checkpoint_7/checkpoint is of version None; valid are 2, 3",
    ),
    "a list": (
        lambda path: edit_index(path, lambda content: [content]),
        r"checkpoint_7/checkpoint is of version None; valid are 2, 3",
    ),
    "no target": (
        lambda path: edit_index(path, lambda content: {"version": 3, "optimizer": {"state": {}}}),
        r"checkpoint_7/checkpoint has no optimizer/target",
    ),
    "a leaf that is text": (
        lambda path: set_query(path, "PLACEHOLDER://query"),
        rf"checkpoint: target/{QUERY} is 'PLACEHOLDER://query'; expected is an array or a spec",
    ),
    "a leaf that is nothing": (
        lambda path: set_query(path, None),
        rf"checkpoint: target/{QUERY} is None; expected is an array or a spec",
    ),
    "a spec without a path": (
        lambda path: set_query(path, {"driver": "zarr", "kvstore": {}, "metadata": {"shape": [1]}}),
        rf"checkpoint: target/{QUERY} is .*driver, path and shape",
    ),
    "a spec that points above": (
        lambda path: set_query(
            path, {"driver": "zarr", "kvstore": {"path": "a/.."}, "metadata": {"shape": [1]}}
        ),
        rf"checkpoint: target/{QUERY} has path 'a/..'; expected is target.NAME/",
    ),
    "a spec of another driver": (
        lambda path: set_query(
            path, {"driver": "n5", "kvstore": {"path": "a"}, "metadata": {"shape": [1]}}
        ),
        rf"checkpoint: target/{QUERY}: unknown driver 'n5'; nearest: zarr",
    ),
    "no directory": (
        lambda path: shutil.rmtree(path / QUERY_FILE),
        rf"{QUERY_FILE} \({QUERY}\) cannot be read.*\.zarray.*does not exist",
    ),
    "no header": (
        lambda path: (path / QUERY_FILE / ".zarray").unlink(),
        rf"{QUERY_FILE} \({QUERY}\) cannot be read.*\.zarray.*does not exist",
    ),
    "a corrupt header": (
        bad_header,
        rf"{QUERY_FILE} \({QUERY}\) cannot be read.*\.zarray.*Invalid JSON",
    ),
    "another shape": (
        other_shape,
        rf"{QUERY_FILE} \({QUERY}\) has shape \[4, 7\]; expected is \[4, 6\], which the file",
    ),
    "another dtype": (
        integers,
        rf"{QUERY_FILE} \({QUERY}\) has dtype uint16; valid are bfloat16, .*version 2 wrote",
    ),
    "inline integers": (
        lambda path: set_query(path, np.zeros((4, 6), np.int32)),
        rf"checkpoint: target/{QUERY} has dtype int32; valid are bfloat16, float16, float32$",
    ),
    "scanned": (
        lambda path: set_query(path, np.zeros((4, 12, 6), np.float32)),
        rf"checkpoint: target/{QUERY} has shape \[4, 12, 6\], as of layers stacked",
    ),
}
INCOMPLETE = {
    "no chunk": (
        lambda path: chunk_of(path).unlink(),
        rf"{QUERY_FILE} \({QUERY}\) cannot be read.*chunk.*0\.0.* is missing",
    ),
    "a truncated chunk": (
        lambda path: chunk_of(path).write_bytes(chunk_of(path).read_bytes()[:12]),
        rf"{QUERY_FILE} \({QUERY}\) cannot be read.*0\.0.*truncated",
    ),
    "an empty chunk": (
        lambda path: chunk_of(path).write_bytes(b""),
        rf"{QUERY_FILE} \({QUERY}\) cannot be read.*0\.0",
    ),
}


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


def write_orbax(folder, params, dtype=None, **options):
    """Writes as T5X's OrbaxCheckpointManagerInterface does."""
    state = {"step": np.int32(7), "param_states": {"decoder": {"m": jnp.ones((4, 3))}}}
    tree = {"target": jax.tree.map(jnp.asarray, params), "state": state}
    args = jax.tree.map(lambda _: ocp.SaveArgs(), tree)
    args["target"] = jax.tree.map(lambda _: ocp.SaveArgs(dtype=dtype), params)
    with ocp.CheckpointManager(
        folder,
        options=ocp.CheckpointManagerOptions(step_prefix="checkpoint"),
        item_handlers={"state": ocp.PyTreeCheckpointHandler(**options)},
    ) as manager:
        item = ocp.args.PyTreeSave(tree, save_args=args)
        manager.save(7, args=ocp.args.Composite(state=item))
    return folder / "checkpoint_7"


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
def bucket(tmp_path, monkeypatch):
    with fake_gcs.serve(tmp_path / "gcs", monkeypatch) as server:
        (tmp_path / "gcs" / "bucket-1").mkdir(parents=True)
        yield server


@pytest.mark.parametrize("spec", ["relative", "bucket", "gfile"])
def test_bucket(bucket, params, spec):
    folder = bucket.root / "bucket-1" / "t5x" / "small size"
    write_legacy(folder / "checkpoint_9", jax.tree.map(jnp.zeros_like, params))
    write_legacy(folder / "checkpoint_10", params, SPECS[spec], ["decoder/decoder_norm/scale"])
    url = "gs://bucket-1/t5x/small size"
    for place in (url, f"{url}/", f"{url}/checkpoint_10", f"{url}/checkpoint_10/checkpoint"):
        assert t5x_checkpoints.recognises(place)
        assert t5x_checkpoints.shapes(place) == like(params, np.float32)
        assert_identical(t5x_checkpoints.load(place, params), params)
    write_legacy(bucket.root / "bucket-1" / "checkpoint_1", params)
    assert_identical(t5x_checkpoints.load("gs://bucket-1", params), params)


@pytest.mark.parametrize("ocdbt", [False, True])
def test_bucket_with_orbax(bucket, params, ocdbt):
    write_orbax(bucket.root / "bucket-1" / "t5x", params, use_ocdbt=ocdbt)
    for place in ("gs://bucket-1/t5x", "gs://bucket-1/t5x/checkpoint_7"):
        assert t5x_checkpoints.shapes(place) == like(params, np.float32)
        assert_identical(t5x_checkpoints.load(place, params), params)


def test_bucket_is_read_in_parallel(bucket, params):
    write_legacy(bucket.root / "bucket-1" / "checkpoint_10", params)
    bucket.together = len(SHAPES)
    t5x_checkpoints.shapes("gs://bucket-1/checkpoint_10")
    assert bucket.most_at_once >= len(SHAPES)
    assert not any("0.0" in request for request in bucket.requests)  # headers only
    bucket.most_at_once, bucket.together = 0, 8  # no array has more than 4 chunks
    t5x_checkpoints.load("gs://bucket-1/checkpoint_10", params)
    assert bucket.most_at_once >= 8


@pytest.mark.parametrize("case", [*MALFORMED, *INCOMPLETE])
def test_malformed_in_a_bucket(bucket, params, case):
    path = write_legacy(bucket.root / "bucket-1" / "checkpoint_7", params)
    damage, message = {**MALFORMED, **INCOMPLETE}[case]
    damage(path)
    with pytest.raises(ValueError, match=message) as raised:
        t5x_checkpoints.load("gs://bucket-1/checkpoint_7", params)
    assert "gs://bucket-1/checkpoint_7" in str(raised.value)


def test_what_a_bucket_may_answer(bucket, params, monkeypatch):
    nothing = r"no file `checkpoint`, no folder `state/`.*or the bucket does not exist or may not"
    for place in ("gs://bucket-1/typo/checkpoint_7", "gs://bucket-2/checkpoint_7"):
        with pytest.raises(ValueError, match=f"{place} is no T5X.*{nothing}"):
            t5x_checkpoints.shapes(place)
    for place in ("gs://", "gs:///checkpoint_7"):
        with pytest.raises(ValueError, match=r"names no bucket; valid is gs://BUCKET/FOLDER"):
            t5x_checkpoints.shapes(place)
    with pytest.raises(ValueError, match=r"gs://No/checkpoint_7/checkpoint cannot.*Invalid GCS bu"):
        t5x_checkpoints.shapes("gs://No/checkpoint_7")

    write_legacy(bucket.root / "bucket-1" / "checkpoint_7", params)
    for status, message in {
        403: "PERMISSION_DENIED",
        401: "as the test wants",
        503: "All 2",
    }.items():
        bucket.status = status
        with pytest.raises(ValueError, match=f"gs://bucket-1/.*checkpoint cannot be.*{message}"):
            t5x_checkpoints.shapes("gs://bucket-1/checkpoint_7")
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"gs://bucket-1/.*checkpoint cannot be.*connect"):
        t5x_checkpoints.shapes("gs://bucket-1/checkpoint_7")


def test_a_bucket_that_does_not_answer(bucket, params, monkeypatch):
    write_legacy(bucket.root / "bucket-1" / "checkpoint_7", params)
    bucket.together = 1000  # each read waits 0.2 s
    monkeypatch.setattr(t5x_checkpoints, "_HEADER_TIMEOUT", 0.05)
    with pytest.raises(ValueError, match=r"checkpoint_7/checkpoint cannot be.*(?i:time|deadline)"):
        t5x_checkpoints.shapes("gs://bucket-1/checkpoint_7")


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
