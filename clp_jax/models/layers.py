"""Building blocks of the T5 model in Flax linen.

Parameter names, parameter shapes (projection kernels are two-dimensional) and logical axis names
are those of `t5x.examples.t5`, so that checkpoints and partitioning rules fit either. Parameters
are float32. Each module computes in its `dtype`, except for what overflows or cancels in bfloat16:
the statistics of the layer norm, and the logits and the softmax of attention are float32 always.

Shape letters: B batch, Q and K query and key positions, H heads, D head_dim.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.partitioning import param_with_axes, with_sharding_constraint

from clp_jax.models.attention import KeyValue, attend

Initializer = Callable[..., jax.Array]

NUM_BUCKETS = 32
MAX_DISTANCE = 128

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "elu": nn.elu,
    "gelu": nn.gelu,  # the tanh approximation, as in T5 1.1
    "linear": lambda x: x,
    "relu": nn.relu,
    "sigmoid": nn.sigmoid,
    "silu": nn.silu,
    "swish": nn.silu,
    "tanh": nn.tanh,
}

_FAN_IN_NORMAL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
_FAN_IN_TRUNCATED = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_FAN_AVG_UNIFORM = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


class Dense(nn.Module):
    """A linear map without bias; parameter `kernel` [in, features]."""

    features: int
    kernel_axes: tuple[str, str]
    kernel_init: Initializer = _FAN_IN_TRUNCATED
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., features]."""
        shape = (inputs.shape[-1], self.features)
        kernel = param_with_axes(
            "kernel", self.kernel_init, shape, jnp.float32, axes=self.kernel_axes
        )
        # As one matrix: XLA on a CPU takes twice as long for a gradient that sums over two axes.
        rows = inputs.astype(self.dtype).reshape(-1, inputs.shape[-1])
        outputs = jnp.dot(rows, kernel.astype(self.dtype))
        return outputs.reshape(*inputs.shape[:-1], self.features)


class LayerNorm(nn.Module):
    """T5's layer norm: division by the root mean square, no mean, no bias; parameter `scale`."""

    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Normalises [..., features] over its last axis, in float32."""
        scale = param_with_axes(
            "scale", nn.initializers.ones, (inputs.shape[-1],), jnp.float32, axes=("embed",)
        )
        x = inputs.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return (x * jax.lax.rsqrt(mean_square + self.epsilon) * scale).astype(self.dtype)


class Embed(nn.Module):
    """A table of vectors; parameter `embedding` [num_embeddings, features]."""

    num_embeddings: int
    features: int
    dtype: jnp.dtype = jnp.dtype("float32")

    def setup(self) -> None:
        """Declares the table."""
        self.embedding = param_with_axes(
            "embedding",
            nn.initializers.normal(stddev=1.0),
            (self.num_embeddings, self.features),
            jnp.float32,
            axes=("vocab", "embed"),
        )

    def __call__(self, token_ids: jax.Array) -> jax.Array:
        """Looks up token ids [B, L]: [B, L, features]. A gather, not a one-hot matmul."""
        embedded = jnp.take(self.embedding, token_ids, axis=0).astype(self.dtype)
        return with_sharding_constraint(embedded, ("batch", "length", "embed"))

    def attend(self, queries: jax.Array) -> jax.Array:
        """The float32 inner products of [..., features] with every row: [..., num_embeddings]."""
        return jnp.dot(queries.astype(jnp.float32), self.embedding.T)


def relative_position_bucket(distance: np.ndarray, bidirectional: bool) -> np.ndarray:
    """T5's bucket of each relative position (Raffel et al. 2020, Sec. 2.1).

    Half of the buckets hold one distance each; the others grow logarithmically up to
    `MAX_DISTANCE`, and everything beyond falls into the last. With `bidirectional`, keys before and
    after the query have half of all buckets each; without it, keys after the query count as 0.

    Args:
      distance: key position minus query position, integers of any shape.
      bidirectional: whether keys after the query have buckets of their own.

    Returns:
      Buckets in [0, NUM_BUCKETS), of the shape of `distance`.
    """
    num_buckets, offset = NUM_BUCKETS, np.zeros_like(distance)
    back = np.maximum(-distance, 0)
    if bidirectional:
        num_buckets //= 2
        offset = np.where(distance > 0, num_buckets, 0)
        back = np.abs(distance)
    num_exact = num_buckets // 2
    num_log = num_buckets - num_exact
    # 1e-6 keeps distances that lie on a bucket's border from being rounded into the one below.
    log_ratio = np.log(np.maximum(back, 1) / num_exact) / math.log(MAX_DISTANCE / num_exact)
    log_bucket = num_exact + np.floor(log_ratio * num_log + 1e-6).astype(distance.dtype)
    return offset + np.where(back < num_exact, back, np.minimum(log_bucket, num_buckets - 1))


class RelativePositionBiases(nn.Module):
    """T5's position encoding: a bias on attention's logits for each head and distance bucket.

    The parameter is `rel_embedding` [num_heads, NUM_BUCKETS].
    """

    num_heads: int
    bidirectional: bool

    def setup(self) -> None:
        """Declares the table of biases."""
        self.rel_embedding = param_with_axes(
            "rel_embedding",
            _FAN_AVG_UNIFORM,
            (self.num_heads, NUM_BUCKETS),
            jnp.float32,
            axes=("heads", "relpos_buckets"),
        )

    def _by_distance(self, num_queries: int, num_keys: int) -> jax.Array:
        """The bias at each distance 1 - Q ... K - 1: [H, Q + K - 1]."""
        distance = np.arange(1 - num_queries, num_keys)
        bucket = relative_position_bucket(distance, self.bidirectional)
        # A product, because the gradient of a gather (a scatter-add) is slow. It only selects, so
        # it must not round as a TPU's matmul does by default.
        one_hot = np.eye(NUM_BUCKETS, dtype=np.float32)[:, bucket]
        return jnp.dot(self.rel_embedding, one_hot, precision=jax.lax.Precision.HIGHEST)

    def __call__(self, num_queries: int, num_keys: int) -> jax.Array:
        """The float32 biases of all pairs of positions: [1, H, Q, K]."""
        bias = self._by_distance(num_queries, num_keys)
        # Row q needs the K entries that start at Q - 1 - q. Rows of one entry more than they are
        # read with shift the view by one in each row; that spares a gather of Q x K.
        width = num_queries + num_keys - 1
        rows = jnp.pad(bias, ((0, 0), (0, 1)))[:, None].repeat(num_queries, axis=1)
        flat = rows.reshape(self.num_heads, -1)[:, : num_queries * width]
        shifted = flat.reshape(self.num_heads, num_queries, width)
        return shifted[None, :, :, num_queries - 1 :]

    def row(self, index: jax.Array, length: int) -> jax.Array:
        """The row of `__call__(length, length)` of the query at `index`: [1, H, 1, length]."""
        bias = self._by_distance(length, length)
        row = jax.lax.dynamic_slice_in_dim(bias, length - 1 - index, length, axis=1)
        return row[None, :, None]


class Attention(nn.Module):
    """Multi-head attention; kernels `query`, `key`, `value` [emb, H * D] and `out` [H * D, emb].

    Logits are not divided by sqrt(D): as in T5, the initialisation of `query` holds that factor.
    """

    num_heads: int
    head_dim: int
    emb_dim: int
    dropout_rate: float = 0.0
    dtype: jnp.dtype = jnp.dtype("float32")

    def setup(self) -> None:
        """Declares the four projections."""

        def query_init(*args) -> jax.Array:
            return _FAN_IN_NORMAL(*args) / math.sqrt(self.head_dim)

        def projection(kernel_init: Initializer) -> Dense:
            joined = self.num_heads * self.head_dim
            return Dense(joined, ("embed", "joined_kv"), kernel_init, self.dtype)

        self.query = projection(query_init)
        self.key = projection(_FAN_IN_NORMAL)
        self.value = projection(_FAN_IN_NORMAL)
        self.out = Dense(self.emb_dim, ("joined_kv", "embed"), _FAN_IN_NORMAL, self.dtype)
        self.dropout = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))

    def _split_heads(self, x: jax.Array) -> jax.Array:
        x = x.reshape(*x.shape[:-1], self.num_heads, self.head_dim)
        return with_sharding_constraint(x, ("batch", "length", "heads", "kv"))

    def project(self, inputs: jax.Array) -> KeyValue:
        """The keys and values of [B, K, emb]."""
        key, value = self._split_heads(self.key(inputs)), self._split_heads(self.value(inputs))
        return KeyValue(key.swapaxes(1, 2), value.swapaxes(1, 2))

    def project_to_cache(self, inputs: jax.Array, index: jax.Array) -> KeyValue:
        """Writes the keys and values of [B, 1, emb] to the cache at `index`; returns all of it."""
        new = self.project(inputs)
        start = (0, 0, index, 0)
        cached = KeyValue(
            jax.lax.dynamic_update_slice(self.get_variable("cache", "cached_key"), new.key, start),
            jax.lax.dynamic_update_slice(
                self.get_variable("cache", "cached_value"), new.value, start
            ),
        )
        self._set_cache(cached)
        return cached

    def init_cache(self, batch_size: int, length: int) -> None:
        """Makes an empty cache for `length` positions."""
        shape = (batch_size, self.num_heads, length, self.head_dim)
        self._set_cache(KeyValue(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype)))

    def cache_length(self) -> int:
        """The number of positions of the cache."""
        return self.get_variable("cache", "cached_key").shape[2]

    def _set_cache(self, cached: KeyValue) -> None:
        self.put_variable("cache", "cached_key", cached.key)
        self.put_variable("cache", "cached_value", cached.value)

    def __call__(
        self,
        inputs: jax.Array,
        key_value: KeyValue,
        mask: jax.Array | None = None,
        bias: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Attends from `inputs` to `key_value`.

        Args:
          inputs: [B, Q, emb].
          key_value: keys and values, each [B, H, K, D].
          mask: bool, broadcastable to [B, H, Q, K]; True where a query may see a key.
          bias: float32, broadcastable to [B, H, Q, K]; added to the logits.
          deterministic: no dropout if True; else an rng named 'dropout' is needed.

        Returns:
          [B, Q, emb].
        """
        query = self._split_heads(self.query(inputs))
        dropout = None
        if self.dropout_rate and not deterministic:
            dropout = functools.partial(self.dropout, deterministic=False)
        return self.out(attend(query, key_value, mask, bias, dropout))


class MlpBlock(nn.Module):
    """T5's feed-forward block.

    With one activation the kernels are `wi` [emb, mlp] and `wo` [mlp, emb]. With several, the
    activations of `wi_0`, `wi_1`, ... are multiplied (Shazeer 2020): ('gelu', 'linear') is T5 1.1.
    """

    mlp_dim: int
    activations: Sequence[str] = ("relu",)
    dropout_rate: float = 0.0
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, inputs: jax.Array, deterministic: bool = True) -> jax.Array:
        """Maps [B, L, emb] to [B, L, emb]."""
        branches = []
        for i, activation in enumerate(self.activations):
            name = "wi" if len(self.activations) == 1 else f"wi_{i}"
            projected = Dense(self.mlp_dim, ("embed", "mlp"), dtype=self.dtype, name=name)(inputs)
            branches.append(ACTIVATIONS[activation](projected))
        hidden = functools.reduce(jnp.multiply, branches)
        hidden = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))(
            hidden, deterministic=deterministic
        )
        hidden = with_sharding_constraint(hidden, ("batch", "length", "mlp"))
        return Dense(inputs.shape[-1], ("mlp", "embed"), dtype=self.dtype, name="wo")(hidden)
