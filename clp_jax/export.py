"""Take a plain language model out of a trained run, for Hugging Face transformers or for T5X.

  python -m clp_jax.export --model_dir=runs/briefs --reward_weights=0.7,0.3 --output=steered

writes θ^{α,w}, which any T5 code can load: nothing of CLP is left in it. Or one part of the run:

  python -m clp_jax.export --model_dir=runs/briefs --part=expert:0 --format=t5x --output=expert
"""

import argparse
import sys
from collections.abc import Sequence

from clp_jax.settings import command_line


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = _parser()
    flags = command_line.parse(parser, argv)
    if (flags.part is None) == (flags.reward_weights is None):
        parser.error("give either --reward_weights or --part")
    if flags.part is not None and flags.kl_weight is not None:
        parser.error("--kl_weight goes with --reward_weights, not with --part")
    with command_line.errors("clp_jax.export"):
        run = command_line.saved_run(flags.model_dir)
        from clp_jax.runs import exporting, generation

        weighting = None
        if flags.reward_weights is not None:
            weighting = generation.weighting(run, flags.reward_weights, flags.kl_weight)
        export = exporting.Export.of(run, weighting, flags.part, flags.step)
        path = export.write(flags.output, flags.format, flags.dtype, flags.overwrite)
    print(f"wrote {path}: {export.title}")


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("clp_jax.export", __doc__)
    parser.add_argument("--model_dir", required=True, help="MODEL_DIR of a clp_jax.train run")
    parser.add_argument(
        "--reward_weights",
        metavar="W1,W2,...",
        help="w of the exported model, in the order of REWARDS; they sum to 1",
    )
    parser.add_argument("--kl_weight", type=float, help="α in [α_min, 1]; default: α_min")
    parser.add_argument(
        "--part",
        help="in place of a weighting: expert:I (the I-th replica with the shared parameters, "
        "counted from 0, not mixed with the reference), reference, or value",
    )
    parser.add_argument(
        "--format",
        choices=("hf", "t5x"),
        default="hf",
        help="hf: a directory for transformers' from_pretrained, with tokenizer and model card; "
        "t5x: OUTPUT/checkpoint_STEP, which T5X restores from; default: %(default)s",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the stored parameters; default: %(default)s",
    )
    parser.add_argument("--output", required=True, help="directory to write")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an export that is there already"
    )
    parser.add_argument("--step", type=int, help="checkpoint; default: the latest")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
