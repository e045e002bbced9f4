"""Supervised finetuning of the reference policy on the reference summaries.

It begins with INITIAL_CHECKPOINT_PATH (FLAN-T5's, say), or with random parameters where that is
None, and writes MODEL_DIR/reference. Give that MODEL_DIR to clp_jax.train as
INITIAL_CHECKPOINT_PATH, or run clp_jax.train in the same MODEL_DIR.

  python -m clp_jax.sft --gin_file=gin/clp_attn.gin --gin_file=gin/briefs.gin
"""

import sys
from collections.abc import Sequence

from clp_jax.machine import host_memory
from clp_jax.settings import command_line


def main(argv: Sequence[str]) -> None:
    """The command."""
    host_memory.keep_freed_memory()
    with command_line.errors("clp_jax.sft"):
        run, _ = command_line.configured_run("clp_jax.sft", __doc__, argv)
        if run.sft.steps < 1:
            raise ValueError(f"SFT_STEPS={run.sft.steps} leaves nothing to do")
        from clp_jax.machine.preemption import Preemption
        from clp_jax.runs import restoring, states, supervised, training

        training.check(run)
        command_line.claim_model_dir(run.model_dir)
    if restoring.has_reference(run):
        print(f"{run.model_dir} has its reference already", file=sys.stderr)
    else:
        run_errors = command_line.errors("clp_jax.sft", *command_line.RUN_ERRORS)
        with run_errors, Preemption() as preemption, training.closing_rewards(run):
            supervised.finetune(run, states.placement(run), preemption)


if __name__ == "__main__":
    main(sys.argv[1:])
