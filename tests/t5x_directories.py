"""T5X checkpoint directories, good and damaged, and what is expected of them."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax import serialization, traverse_util

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


def make_params():
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
