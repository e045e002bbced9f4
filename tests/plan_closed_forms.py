"""What a T5 1.1 takes, by hand: matrix products of its passes, and parameters on a chip."""


def _attention(config):
    """Weights of one projection."""
    return config.emb_dim * config.num_heads * config.head_dim


def relative_positions(config, length):
    """Floating-point operations of the bias between `length` queries and keys; 32 buckets."""
    return 2 * config.num_heads * 32 * (2 * length - 1)


def encoder(config, batch, length):
    """Of one pass over prompts [batch, length], without its bias of positions."""
    width = config.num_heads * config.head_dim
    weights = 4 * _attention(config) + 3 * config.emb_dim * config.mlp_dim
    looked = 2 * batch * length * length * width
    return 2 * config.num_encoder_layers * (batch * length * weights + looked)


def keys_and_values(config, batch, prompt):
    """Of the decoder's projections of what the encoder gave."""
    return 2 * config.num_decoder_layers * 2 * batch * prompt * _attention(config)


def decoder(config, batch, prompt, tokens, seen):
    """Of one pass over `tokens` per example, each of which looks at `seen` of its own."""
    width = config.num_heads * config.head_dim
    weights = 4 * _attention(config) + 2 * _attention(config) + 3 * config.emb_dim * config.mlp_dim
    looked = 2 * batch * tokens * (seen + prompt) * width
    logits = batch * tokens * config.emb_dim * config.vocab_size
    return 2 * (config.num_decoder_layers * (batch * tokens * weights + looked) + logits)


def generate(config, batch, prompt, length):
    """Encodes once, and decodes a token `length` times; the cache is `length` long."""
    step = decoder(config, batch, prompt, 1, length) + relative_positions(config, length)
    return (
        encoder(config, batch, prompt)
        + relative_positions(config, prompt)
        + keys_and_values(config, batch, prompt)
        + length * step
    )


def score(config, batch, prompt, length):
    """One teacher-forced pass."""
    return (
        encoder(config, batch, prompt)
        + keys_and_values(config, batch, prompt)
        + decoder(config, batch, prompt, length, length)
        + relative_positions(config, prompt)
        + relative_positions(config, length)
    )


def update(config, batch, prompt, length):
    """Policy and value network, there and back: twice as much back as there.

    The bias of positions is a product with a constant, which needs but one of the two ways back.
    """
    both = score(config, batch, prompt, length) + score(config, batch, prompt, 1)
    biases = 2 * relative_positions(config, prompt)
    biases += relative_positions(config, length) + relative_positions(config, 1)
    return 3 * both - biases


def parameters(config):
    """(cut by NUM_PARTITIONS, of these not cut by FULLY_SHARDED; not cut by NUM_PARTITIONS)."""
    layers = config.num_encoder_layers + config.num_decoder_layers
    attentions = layers + config.num_decoder_layers  # the decoder has two each
    weights = 4 * attentions * _attention(config) + layers * 3 * config.emb_dim * config.mlp_dim
    weights += 2 * config.emb_dim * config.vocab_size
    biases = 2 * 32 * config.num_heads
    scales = config.emb_dim * (attentions + layers + 2)
    return weights + biases, biases, scales


def on_a_chip(config, data, model, fully_sharded):
    """How many parameters each of [data, model] chips holds."""
    cut, without_embed, scales = parameters(config)
    if not fully_sharded:
        return cut / model + scales
    return (cut - without_embed) / model / data + without_embed / model + scales / data


def conditioned(config, encoder, decoder):
    """|S| of attn-CLP with the first so many layers of either."""
    return 4 * _attention(config) * (encoder + 2 * decoder)
