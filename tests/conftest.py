import os
import pathlib
from importlib.metadata import version

# The runs of the tests, many of them processes of their own, compile the same few programs.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "xla"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Most of the time goes to compilation, and the fastest is the one that optimises least. To test the
# programs as users get them, set the first to 0 and the second to nothing.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if version("jaxlib").startswith("0.10."):  # a version that does not know a flag aborts
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import jax
import jax.numpy as jnp
import pytest

from clp_jax.models.t5 import T5Config, Transformer


@pytest.fixture(scope="session")
def module():
    """A T5 1.1 that is small enough to differentiate in a second."""
    return Transformer(
        T5Config(
            vocab_size=24,
            emb_dim=16,
            num_heads=2,
            num_encoder_layers=1,
            num_decoder_layers=2,
            head_dim=8,
            mlp_dim=32,
            mlp_activations=("gelu", "linear"),
            dropout_rate=0.0,
        )
    )


@pytest.fixture(scope="session")
def reference(module):
    """θ_ref of `module`, scaled so that its distributions are far from uniform."""
    tokens = jnp.ones([1, 4], jnp.int32)

    @jax.jit
    def init(key):
        params = module.init(key, tokens, tokens, tokens, enable_dropout=False)["params"]
        return jax.tree.map(lambda x: 1.5 * x, params)

    return init(jax.random.key(0))


@pytest.fixture
def prompts():
    """Four prompts of different lengths, padded with 0."""
    return jnp.array([[5, 6, 7, 1], [8, 9, 1, 0], [10, 1, 0, 0], [11, 12, 13, 1]], jnp.int32)


@pytest.fixture
def chat_server(monkeypatch):
    """A chat model behind HTTP."""
    from chat_server import ChatServer

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ChatServer()
    yield server
    server.stop()
