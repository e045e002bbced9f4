"""T5X checkpoints in a bucket: where they lie, how they are read, what is refused."""

import fake_gcs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from t5x_directories import (
    INCOMPLETE,
    MALFORMED,
    SHAPES,
    SPECS,
    assert_identical,
    like,
    make_params,
    write_legacy,
    write_orbax,
)

from clp_jax.models import t5x_checkpoints


@pytest.fixture
def params():
    return make_params()


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
    # Of another bucket, as errors may be kept.
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"gs://bucket-4/.*checkpoint cannot be.*connect"):
        t5x_checkpoints.shapes("gs://bucket-4/checkpoint_7")


def test_a_bucket_that_does_not_answer(bucket, params, monkeypatch):
    write_legacy(bucket.root / "bucket-1" / "checkpoint_7", params)
    bucket.together = 1000  # each read waits 0.2 s
    monkeypatch.setattr(t5x_checkpoints, "_HEADER_TIMEOUT", 0.05)
    with pytest.raises(ValueError, match=r"checkpoint_7/checkpoint cannot be.*(?i:time|deadline)"):
        t5x_checkpoints.shapes("gs://bucket-1/checkpoint_7")
