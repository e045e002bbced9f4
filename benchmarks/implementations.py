"""What the rollout benchmark compares: ours, Hugging Face transformers on torch, and t5x."""

import functools
from collections.abc import Mapping
from typing import Any

import common
import numpy as np


class Ours:
    """clp_jax."""

    def __init__(self, settings: Mapping[str, Any]):
        import jax

        from clp_jax.machine import host_memory
        from clp_jax.models import sampling
        from clp_jax.models.decoding import Decoding

        host_memory.keep_freed_memory()  # as its commands do
        self._decoding = Decoding
        module, self._params = _load_jax(settings)
        self._prompts = jax.device_put(common.make_prompts(settings))

        def sample(params, prompts, key, decoding):
            keys = jax.random.split(key, prompts.shape[0])
            return sampling.sample(module, params, prompts, keys, decoding)

        self._sample = jax.jit(sample, static_argnums=3)
        self._key = jax.random.key

    def run(self, length: int, greedy: bool, seed: int) -> np.ndarray:
        """Tokens [B, length]."""
        decoding = self._decoding(length, temperature=0.0 if greedy else 1.0, eos_id=common.NO_EOS)
        samples = self._sample(self._params, self._prompts, self._key(seed), decoding)
        return np.asarray(samples.tokens)

    def multiply(self, size: int) -> float:
        """Milliseconds of one product of float32 matrices."""
        return _multiply_jax(size)


class T5X:
    """t5x's own model class, network and sampler, compiled as one program."""

    def __init__(self, settings: Mapping[str, Any], gather: bool):
        import jax
        import jax.numpy as jnp
        import t5x.decoding
        import t5x.examples.t5.network as network
        import t5x.models

        if gather:
            embed = network.layers.Embed
            network.layers.Embed = lambda **fields: embed(**(fields | {"one_hot": False}))
        module = network.Transformer(network.T5Config(**settings["model"]))
        _, self._params = _load_jax(settings)
        self._prompts = jax.device_put(common.make_prompts(settings))

        def sample(params, prompts, key, length, greedy):
            model = t5x.models.EncoderDecoderModel(
                module,
                input_vocabulary=None,
                output_vocabulary=None,
                optimizer_def=None,
                decode_fn=functools.partial(
                    t5x.decoding.temperature_sample, topk=1 if greedy else 0, temperature=1.0
                ),
            )
            batch = {
                "encoder_input_tokens": prompts,
                "decoder_input_tokens": jnp.zeros((prompts.shape[0], length), jnp.int32),
            }
            # Of the two methods the one that takes the id of EOS. The scores, unused, cost nothing.
            tokens, _ = model.predict_batch_with_aux(
                params, batch, rng=key, decoder_params={"eos_id": common.NO_EOS}
            )
            return tokens

        self._sample = jax.jit(sample, static_argnums=(3, 4))
        self._key = jax.random.PRNGKey

    def run(self, length: int, greedy: bool, seed: int) -> np.ndarray:
        """Tokens [B, length]."""
        return np.asarray(
            self._sample(self._params, self._prompts, self._key(seed), length, greedy)
        )

    def multiply(self, size: int) -> float:
        """Milliseconds of one product of float32 matrices."""
        return _multiply_jax(size)


class HuggingFace:
    """transformers on torch."""

    def __init__(self, settings: Mapping[str, Any]):
        import torch
        import transformers

        self._torch = torch
        torch.set_num_threads(settings["threads"])
        self._model = transformers.T5ForConditionalGeneration.from_pretrained(
            settings["weights"], dtype=torch.float32
        ).eval()
        self._model.generation_config.eos_token_id = None  # nothing ends a completion
        self._prompts = torch.tensor(common.make_prompts(settings), dtype=torch.long)

    def run(self, length: int, greedy: bool, seed: int) -> np.ndarray:
        """Tokens [B, length]."""
        self._torch.manual_seed(seed)
        drawn = {} if greedy else {"top_k": 0, "top_p": 1.0, "temperature": 1.0}
        with self._torch.inference_mode():
            tokens = self._model.generate(
                input_ids=self._prompts,
                attention_mask=self._torch.ones_like(self._prompts),
                do_sample=not greedy,
                max_new_tokens=length,
                use_cache=True,
                **drawn,
            )
        return tokens[:, 1:].numpy()  # without the token that the decoder starts with

    def multiply(self, size: int) -> float:
        """Milliseconds of one product of float32 matrices."""
        a, b = (self._torch.rand(size, size) for _ in range(2))
        with self._torch.inference_mode():
            a[:8] @ b
            return common.milliseconds(lambda: a @ b)


IMPLEMENTATIONS = {
    "ours": Ours,
    "hf": HuggingFace,
    "t5x": functools.partial(T5X, gather=False),
    "t5x-gather": functools.partial(T5X, gather=True),
}
NEEDS = {"ours": (), "hf": ("torch", "transformers"), "t5x": ("t5x",), "t5x-gather": ("t5x",)}


def _load_jax(settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """Our module, and the parameters on the device."""
    import jax

    from clp_jax.models import hf_checkpoints

    module = common.make_module(settings)
    params = hf_checkpoints.load(settings["weights"], common.param_shapes(module))
    return module, jax.device_put(params)


@functools.cache
def _compiled_product(size: int) -> Any:
    import jax

    key = jax.random.key(0)
    operands = jax.jit(lambda: [jax.random.uniform(k, (size, size)) for k in jax.random.split(key)])
    multiply = jax.jit(lambda a, b: a @ b)
    jax.block_until_ready(multiply(*operands()))
    return operands, multiply


def _multiply_jax(size: int) -> float:
    import jax

    operands, multiply = _compiled_product(size)
    a, b = jax.block_until_ready(operands())
    return common.milliseconds(lambda: jax.block_until_ready(multiply(a, b)))
