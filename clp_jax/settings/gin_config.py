"""Gin on the command line, as in t5x: --gin_file, --gin_search_paths and --gin.NAME=value.

Errors name the bad value, the file and line or the flag it came from, and the nearest valid names.
"""

import argparse
import contextlib
import difflib
import inspect
import logging
import os
import pathlib
import pkgutil
import re
import sys
import tokenize
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import gin
from gin import config as gin_internals

from clp_jax.reporting.errors import ConfigError, unknown_name
from clp_jax.settings import old_names

if TYPE_CHECKING:
    from clp_jax.settings.config import Run

T = TypeVar("T")

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# What has the folder gin/: the package where it is installed, else the repository.
_SHIPPED = _PACKAGE if (_PACKAGE / "gin").is_dir() else _PACKAGE.parent
GIN_FILES = _SHIPPED / "gin"
_DYNAMIC_REGISTRATION = "from __gin__ import dynamic_registration"

# What may change between two runs in one MODEL_DIR: how long and how often, not what is learnt.
_MAY_CHANGE = {
    "MODEL_DIR",
    "TRAIN_STEPS",
    "EVAL_PERIOD",
    "STATS_PERIOD",
    "SAVE_PERIOD",
    "KEEP_CHECKPOINTS",
    "NUM_PARTITIONS",
    "EVAL_EXAMPLES",
    "EVAL_BATCH_SIZE",
    "EVAL_GRID_POINTS",
    "EVAL_MIXING",
    "EVAL_REWARDS",
    "KL_WARNING",
    "FIT_STEPS",
    "FIT_STATS_PERIOD",
    "FIT_SAVE_PERIOD",
    "FIT_KEEP_CHECKPOINTS",
    "FIT_EVAL_PERIOD",
    "FIT_EVAL_EXAMPLES",
    "FIT_EVAL_BATCH_SIZE",
}


def add_gin_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that t5x has, those but --gin.NAME=value, which `split_bindings` takes out."""
    group = parser.add_argument_group("configuration")
    group.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="FILE",
        help="gin file; repeatable, later files override earlier ones",
    )
    group.add_argument(
        "--gin_search_paths",
        default="",
        metavar="DIR[,DIR]",
        help="where gin files are looked for, after here and before those that are shipped",
    )
    group.add_argument(
        "--gin.NAME",
        dest="gin_example",
        metavar="VALUE",
        help="override one macro or parameter; strings need their quotes, "
        "e.g. --gin.TRAIN_STEPS=500 --gin.MODEL_DIR=\"'/tmp/run'\" "
        '--gin.SUBSET="@subset.full()"; docs/configuration.md lists the macros',
    )


def split_bindings(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Parts a command line: (other flags, gin bindings "NAME=value" in the order given)."""
    # "--gin.NAME value" is t5x's other spelling of "--gin.NAME=value".
    joined: list[str] = []
    for argument in argv:
        if joined and re.fullmatch(r"--gin\.[^=]+", joined[-1]):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    bindings = [a.removeprefix("--gin.") for a in joined if a.startswith("--gin.")]
    return [a for a in joined if not a.startswith("--gin.")], bindings


def load(gin_files: Sequence[str], bindings: Sequence[str] = (), search_paths: str = "") -> None:
    """Parses gin files, then bindings, into gin's global configuration.

    Bindings may name whatever the files import.

    Args:
      gin_files: paths, relative to the working directory, to a search path, or to the shipped files
        and their folder gin/; the first of these that has the file wins.
      bindings: "NAME=value" strings from the command line.
      search_paths: comma-separated directories.

    Raises:
      ConfigError: a file that is missing, a name that is unknown, a value that does not parse.
    """
    gin.clear_config()
    roots = ["", "gin", *filter(None, search_paths.split(",")), str(_SHIPPED), str(GIN_FILES)]
    gin_internals._LOCATION_PREFIXES[:] = roots
    gin_internals._FILE_READERS[:] = [(old_names.opened, os.path.isfile)]
    for gin_file in gin_files:
        with _explained(f"--gin_file={gin_file}"):
            if not any(pathlib.Path(root, gin_file).exists() for root in roots):
                raise ConfigError(_missing_file(gin_file))
            with _quiet(), _main_train():
                gin.parse_config_file(gin_file)
    file_macros = _macros()
    imports = [statement.format() for statement in sorted(_imports(), key=lambda s: s.module)]
    for binding in bindings:
        source = f"--gin.{binding}"
        with _explained(source):
            name, equals, value = binding.partition("=")
            if not equals:
                raise ConfigError(f"{source} has no value; write --gin.{name}=value")
            if re.fullmatch(r"\w+", name) and name not in file_macros:
                raise ConfigError(unknown_name("gin name", name, file_macros, source))
            with _main_train():
                gin.parse_config([_DYNAMIC_REGISTRATION, *imports, f"{name} = {value}"])
    check_macros()
    for binding in gin_internals._CONFIG.values():
        for name, value in binding.items():
            if isinstance(value, str) and value.startswith("~"):
                binding[name] = os.path.expanduser(value)


def configured_run() -> "Run":
    """The `Run` that the parsed configuration describes.

    Raises:
      ConfigError: a macro that must be set is not, or a setting is wrong.
    """
    from clp_jax.settings.config import Run

    return configured(Run)


def configured(configurable: type[T]) -> T:
    """An object of a class, as the parsed configuration describes it.

    Raises:
      ConfigError: a macro that must be set is not, or a setting is wrong.
    """
    required = [
        scope
        for (scope, selector), binding in gin_internals._CONFIG.items()
        if selector == "gin.macro"
        and any(reference.scopes == ["gin.REQUIRED"] for reference in _references(binding))
    ]
    if required:
        raise ConfigError(
            f"{', '.join(sorted(required))} must be set; for example --gin.{min(required)}=..."
        )
    with _explained("configuration"):
        return gin.get_configurable(configurable)()


def configures(configurable: type | str) -> bool:
    """Whether the parsed configuration sets anything of a class, or of one of that name."""
    names = {selector.rpartition(".")[2] for _, selector in gin_internals._CONFIG}
    return getattr(configurable, "__name__", configurable) in names


def config_differences(old: str, new: str, also_may_change: Collection[str] = ()) -> list[str]:
    """What two configurations (`gin.config_str`) disagree on, except what may change.

    Args:
      old: one.
      new: the other.
      also_may_change: names, beside those that may change in every MODEL_DIR.

    Returns:
      "NAME: old value -> new value" for each.
    """
    before, after = _bindings(old), _bindings(new)
    may_change = _MAY_CHANGE.union(also_may_change)
    return [
        f"{name}: {before.get(name, '(unset)')} -> {after.get(name, '(unset)')}"
        for name in sorted(before.keys() | after.keys())
        if name not in may_change and before.get(name) != after.get(name)
    ]


def _bindings(config: str) -> dict[str, str]:
    """Name -> value of a configuration's text, in which long values go on over indented lines."""
    joined = re.sub(r"\\?\n[ \t]+", " ", re.sub(r"^#.*\n", "", config, flags=re.MULTILINE))
    pairs = (line.split(" = ", 1) for line in joined.splitlines())
    return {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}


def _imports() -> Iterable[gin_internals.config_parser.ImportStatement]:
    return [s for s in gin_internals._IMPORTS if not s.module.startswith("__gin__")]


def _macros() -> set[str]:
    return {scope for scope, selector in gin_internals._CONFIG if selector == "gin.macro" and scope}


def check_macros() -> None:
    """Finds misspelt macros, which gin finds late (those that are read) or never (those set).

    Raises:
      ConfigError: a %NAME that nothing binds, or a NAME that nothing reads but that is close to one
        that is read.
    """
    read = set()
    for (scope, selector), binding in gin_internals._CONFIG.items():
        for name in _macros_in(binding):
            if name not in _macros():
                where = scope if selector == "gin.macro" else selector
                raise ConfigError(unknown_name("gin name", f"%{name}", _macros(), where))
            read.add(name)
    for name in sorted(_macros() - read):
        if difflib.get_close_matches(name, read, cutoff=0.75):
            raise ConfigError(unknown_name("gin name", name, read, "a gin file; nothing reads it"))


def _references(value: object) -> Iterator[gin_internals.ConfigurableReference]:
    return gin_internals.iterate_references({"": value})


def _macros_in(value: object) -> set[str]:
    macro = gin_internals.macro
    return {
        "/".join(r.scopes)
        for r in _references(value)
        if r.configurable.wrapped is macro and r.scopes
    }


@contextlib.contextmanager
def _main_train() -> Iterator[None]:
    """Gin files bind `train_script.train`, the main module's: t5x's. Ours gets one meanwhile."""
    from clp_jax.settings import t5x_driver

    main = sys.modules["__main__"]
    missing = object()
    before = getattr(main, "train", missing)
    main.train = t5x_driver.train  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if before is missing:
            del main.train
        else:
            main.train = before  # type: ignore[attr-defined]


def _missing_file(gin_file: str) -> str:
    known = [str(path.relative_to(_SHIPPED)) for path in GIN_FILES.glob("**/*.gin")]
    return unknown_name("gin file", gin_file, known, "--gin_file")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Gin logs an error for each search path that lacks a file, although another one has it."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _explained(source: str) -> Iterator[None]:
    """Adds to gin's own messages what gin does not say."""
    try:
        yield
    except ConfigError:
        raise
    except RecursionError:
        raise ConfigError(
            f"{source} includes itself, or a file that does; the shipped files are included as "
            "'gin/NAME.gin', where no file of yours has that path"
        ) from None
    except (SyntaxError, tokenize.TokenError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{source} is not a gin value ({reason}); a string needs quotes that the shell leaves "
            "in place: --gin.NAME=\"'text'\""
        ) from error
    except (ValueError, NameError, AttributeError, ImportError, OSError, TypeError) as error:
        raise ConfigError(f"{source}: {error}{_nearest(str(error))}") from error


def _nearest(message: str) -> str:
    """ "; nearest: ..." for gin's messages about a name, or nothing."""
    shown: dict[str, str] = {}
    if match := re.search(r"<module '([\w.]+)'.*has no attribute (\w+)", message):
        name, valid = match[2], [n for n in dir(sys.modules[match[1]]) if not n.startswith("_")]
    elif match := re.search(
        r"Configurable '([\w./]+)' doesn't have a parameter named '(\w+)'", message
    ):
        target = gin_internals._REGISTRY.get_match(match[1])
        name, valid = match[2], list(inspect.signature(target.wrapped).parameters)
    elif match := re.search(r"'(\w+)' was not provided by an import", message):
        name, valid = match[1], [s.bound_name() for s in _imports()]
    elif match := re.search(r"No module named '([\w.]+)'", message):
        name = match[1].rpartition(".")[2]
        modules = pkgutil.walk_packages([str(_PACKAGE)], "clp_jax.")
        shown = {module.name.rpartition(".")[2]: module.name for module in modules}
        valid = list(shown)
    else:
        return ""
    nearest = difflib.get_close_matches(name, valid, n=3, cutoff=0.0)
    return f"\n  nearest: {', '.join(shown.get(each, each) for each in nearest)}"
