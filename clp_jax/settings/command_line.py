"""What the commands share: flags and gin files in, a `Run` out, and the MODEL_DIR they write to."""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence

from clp_jax.machine import accelerators
from clp_jax.reporting import console
from clp_jax.reporting.errors import RETRY, ConfigError, Diverged, Preempted, RewardError
from clp_jax.settings import gin_config

CONFIG = "config.gin"
OPERATIVE_CONFIG = "operative_config.gin"
# What settings and files that are wrong raise.
SETTINGS_ERRORS = (ValueError, OSError, ImportError)
# What a run may end with that trying again would not mend.
RUN_ERRORS = (RewardError, Diverged)


@contextlib.contextmanager
def errors(program: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turns errors of configuration and input into one message on stderr and exit status 2.

    Every command begins so, and here it is said which accelerator JAX looks for.

    Args:
      program: named in front of the message.
      *kinds: of errors; by default those that settings, files and rewards give.
    """
    accelerators.look_for_none_in_vain()
    caught = kinds or (*SETTINGS_ERRORS, *RUN_ERRORS)
    try:
        yield
    except Preempted as stopped:
        print(f"{program}: {stopped}", file=sys.stderr)
        raise SystemExit(RETRY) from None
    except caught as error:
        if isinstance(error, RewardError) and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)  # the user's own code: show where
        print(f"{program}: error: {str(error) or repr(error)}", file=sys.stderr)
        raise SystemExit(2) from error


def parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """A parser of a command's flags, for `parse`; --help calls the command as the user did.

    Args:
      program: e.g. "clp_jax.train".
      description: the command's docstring.
    """
    installed = pathlib.Path(sys.argv[0]).name == "clp-jax"
    made = argparse.ArgumentParser(
        prog=program.replace("clp_jax.", "clp-jax ") if installed else f"python -m {program}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--verbose", action="store_true", help="print what the libraries say, too")
    return made


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """The flags; the libraries are quiet from here on, but with --verbose."""
    if sys.stderr is None:  # closed; messages would go to standard output
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    flags = parser.parse_args(argv)
    for name, value in vars(flags).items():  # the shell leaves --flag=~/file as it is
        if isinstance(value, str) and value.startswith("~"):
            setattr(flags, name, os.path.expanduser(value))
    if not flags.verbose:
        console.quiet()
    return flags


def configured_run(
    program: str,
    description: str | None,
    argv: Sequence[str],
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    configurable: Callable[[], type] | None = None,
    example: str = "gin/clp_attn.gin",
    before: Callable[[argparse.Namespace], None] | None = None,
    loaded: Callable[[argparse.Namespace], None] | None = None,
):
    """Parses a command line with gin flags.

    Args:
      program: for --help, e.g. "clp_jax.train".
      description: likewise.
      argv: without the program.
      add_arguments: adds the command's own flags.
      configurable: gives the class of what is configured; None for `Run`.
      example: a gin file for the message that there is none.
      before: called with the flags before anything is configured.
      loaded: called with the flags when gin has all bindings and nothing is made of them yet.

    Returns:
      (the configured object, the parsed flags).

    Raises:
      ConfigError: a setting that is missing or wrong.
    """
    flag_parser = parser(program, description)
    gin_config.add_gin_arguments(flag_parser)
    if add_arguments is not None:
        add_arguments(flag_parser)
    others, bindings = gin_config.split_bindings(argv)
    flags = parse(flag_parser, others)
    if not flags.gin_file:
        raise ConfigError(f"no --gin_file; for example --gin_file={example} (try --help)")
    if before is not None:
        before(flags)
    kind = "Run" if configurable is None else configurable()
    lacking = ConfigError(
        f"{', '.join(flags.gin_file)}: no file for this command among them; for example "
        f"--gin_file={example}"
    )
    try:
        gin_config.load(flags.gin_file, bindings, flags.gin_search_paths)
    except ConfigError as error:
        # What such a file defines is missed first.
        if "gin name '%" not in str(error) or gin_config.configures(kind):
            raise
        raise lacking from error
    if not gin_config.configures(kind):
        raise lacking
    if loaded is not None:
        loaded(flags)
    if isinstance(kind, str):
        return gin_config.configured_run(), flags
    return gin_config.configured(kind), flags


def saved_run(model_dir: str):
    """The `Run` that a MODEL_DIR was trained with.

    Raises:
      ConfigError: no run there.
    """
    config = pathlib.Path(model_dir, CONFIG)
    if not config.is_file():
        raise ConfigError(f"--model_dir={model_dir} holds no run: there is no {config}")
    gin_config.load([str(config.resolve())], [f"MODEL_DIR = {str(model_dir)!r}"])
    return gin_config.configured_run()


def claim_model_dir(model_dir: str, may_change: Collection[str] = (), write: bool = True) -> None:
    """Writes config.gin, or checks that the one there says the same.

    Args:
      model_dir: the run's directory; made if missing.
      may_change: see `gin_config.config_differences`.
      write: False to check only.

    Raises:
      ConfigError: the directory belongs to a run with other settings; names them.
    """
    import gin

    folder = pathlib.Path(model_dir)
    path, config = folder / CONFIG, gin.config_str(max_line_length=100)
    if path.is_file():
        differences = gin_config.config_differences(path.read_text(), config, may_change)
        if differences:
            raise ConfigError(
                f"MODEL_DIR={model_dir} holds a run with another configuration ({path}):\n  "
                + "\n  ".join(differences)
                + "\nChoose another MODEL_DIR, or remove that one."
            )
    if not write:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for file_name, text in ((CONFIG, config), (OPERATIVE_CONFIG, gin.operative_config_str())):
        partial = folder / f".{file_name}.partial"
        partial.write_text(text)
        partial.rename(folder / file_name)


def with_evaluation(
    run, grid_points: int | None, num_examples: int | None, mixing: str | None = None
):
    """`run` with the evaluation settings that a command line overrides."""
    changes = {"grid_points": grid_points, "num_examples": num_examples, "mixing": mixing}
    given = {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, **given))


def add_mixing_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --mixing, of the commands that generate with a trained policy."""
    parser.add_argument(
        "--mixing",
        choices=("parameters", "logits"),
        help="what is mixed at a weighting: parameters, or logits (of a soup's experts, or of the "
        "policy at α_min and the reference); default: EVAL_MIXING of the run",
    )
