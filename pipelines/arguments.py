"""Shared code of the command lines: presets, overrides, exit statuses and errors."""

import _thread
import argparse
import contextlib
import difflib
import errno
import importlib.metadata
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import textwrap
import threading
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_transfer import __version__
from keras_transfer.backbones.choice import choose_backbone
from keras_transfer.config import (
    PRESETS,
    describe_fields,
    describe_other_names,
    describe_without_effect,
    dotted_fields,
    is_images,
    load_spec,
    make_spec,
    override,
    parse_assignments,
)
from keras_transfer.devices import speed_up_imports, use_onednn
from keras_transfer.errors import KerasTransferError, RunError, SpecError
from keras_transfer.fields import Typed, nearest
from keras_transfer.specs import RunSpec
from keras_transfer.storage.atomic import storage_error

STARTED = time.perf_counter()
"""When the command began: its verb imports this module first."""
UNREAD, USER_ERROR, INTERRUPTED = 1, 2, 130
STOPPED = "no finished file was changed"
RESUMABLE = "a training continues with --resume"
USUAL_FIELDS = (
    *("task", "seed", "folds", "data.val_fraction", "data.test_fraction", "data.image_size"),
    *("views.policy", "views.count", "model.backbone", "model.weights", "phases.N.epochs"),
    *("phases.N.unfreeze", "phases.N.learning_rate", "training.batch_size"),
)
"""Beginnings of the names of the fields that a person sets most often."""
_PAIR = re.compile("key=value|step=amount")
_PLACE = "data.path="
_RAISES = signal.default_int_handler
_REPEAT_SECONDS = 0.05


def make_parser(
    verb: str,
    text: str,
    *,
    fields: bool = False,
    also: Sequence[str] = (),
    own: tuple[str, type] | None = None,
) -> "_Parser":
    """A parser for `python -m pipelines.<verb>`.

    Args:
        fields: whether the usual fields of the spec are appended to the help.
        also: beginnings of the names of more of them.
        own: the title and the dataclass of further fields, listed before those.
    """
    lists = [_list_fields(f"{own[0]}:", own[1])] if own else []
    if fields:
        title = "fields that key=value can set most often, with their defaults:"
        lists.append(_list_fields(title, RunSpec, (*USUAL_FIELDS, *also)))
        lists.append("--help-fields lists all fields.")
    parser = _Parser(
        prog=f"python -m pipelines.{verb}",
        description=text,
        epilog="\n\n".join(lists) or None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.own = [name for name, _, _ in describe_fields(own[1])] if own else []
    version = f"keras_transfer {__version__}"
    parser.add_argument("--version", action="version", version=version)
    if fields:
        parser.add_argument(
            "--help-fields", action=_AllFields, nargs=0, help="list all fields and exit"
        )
    return parser


class _Parser(argparse.ArgumentParser):
    """Refuses unknown options with what to write instead, such as `epochs=5` for `--epochs 5`."""

    own: Sequence[str] = ()
    """Names that this verb takes as `name=value` and that are no field of the spec."""
    _words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._words = self._words or (sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def parse_known_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._words = sys.argv[1:] if args is None else args
        return super().parse_known_intermixed_args(args, namespace)

    def error(self, message: str) -> typing.NoReturn:
        """Raise SpecError for unknown options and missing words; print others, and exit."""
        title = "unrecognized arguments: "
        unknown = [word for word in message.removeprefix(title).split() if word.startswith("-")]
        if "arguments are required: " in message:
            unknown = [word for word in self._words if self._is_unknown(word)]
            if not unknown:
                raise self._missing(message)
        elif not message.startswith(title) or not unknown:
            super().error(message)
        raise SpecError(
            f"there is no option {', '.join(unknown)}",
            expected=", ".join(self._options()),
            received=" ".join(self._words),
            fix="; ".join(dict.fromkeys(map(self._instead, unknown))),
        )

    def _is_unknown(self, word: str) -> bool:
        """Whether a word is an option that is neither one of this verb nor its beginning."""
        name = word.partition("=")[0]
        known = any(option.startswith(name) for option in self._options())
        return word.startswith("--") and not known

    def _missing(self, message: str) -> SpecError:
        """The error where words are missing, with the help of the first of them."""
        words = [action for action in self._actions if not action.option_strings]
        names = [str(action.metavar or action.dest) for action in words]
        given = message.partition("required: ")[2].split(", ")
        needed = [
            (name, action)
            for name, action in zip(names, words, strict=True)
            if name in given and action.nargs != "*"
        ]
        form = (
            f"[{name} …]" if action.nargs == "*" else name
            for name, action in zip(names, words, strict=True)
        )
        return SpecError(
            f"{' and '.join(name for name, _ in needed)} must be given",
            expected=" ".join([self.prog, *form]),
            received=" ".join(self._words) or "nothing after the verb",
            fix=f"give {needed[0][0]}: {needed[0][1].help}; --help shows examples",
        )

    def _options(self) -> list[str]:
        return [option for option in self._option_string_actions if option.startswith("--")]

    def _instead(self, option: str) -> str:
        """A field in place of an option, the nearest option, or a hint."""
        name, equals, value = option.lstrip("-").replace("-", "_").partition("=")
        metavars = " ".join(str(action.metavar) for action in self._actions)
        if _PAIR.search(metavars) and (name in self.own or _is_field(name)):
            following = self._words[self._words.index(option) + 1 :]
            text = value if equals else (following or ["…"])[0]
            return f"write {name}={text}, without dashes"
        return nearest(option, self._options(), otherwise="--help explains all options")


def _is_field(name: str) -> bool:
    """Whether a word names a field of the spec, also as other libraries call it."""
    try:
        override(RunSpec(), dotted_fields({name: Typed("")}))
    except SpecError as error:
        return not error.what.startswith(("there is no field", "unknown field"))
    return True


class _AllFields(argparse.Action):
    """Prints all fields of the spec and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        title = "fields that key=value can set, with their defaults:"
        sys.stdout.write(_list_fields(title, RunSpec) + "\n")
        parser.exit()


def _list_fields(title: str, kind: type, names: tuple[str, ...] = ("",)) -> str:
    """The fields whose names begin with one of `names`."""
    lines = [title]
    for name, default, text in describe_fields(kind):
        if name.startswith(names):
            lines.append(f"  {name + '=' + default:44} {text}")
    return "\n".join(lines)


def add_spec_arguments(
    parser: argparse.ArgumentParser, *, fields: str = "fields to change"
) -> None:
    """Add the images or the preset, and the fields to change, to the arguments."""
    known = ", ".join(sorted(file.stem for file in PRESETS.glob("*.toml")))
    parser.add_argument(
        "source",
        help="a folder with a sub-folder of images for each class, or a CSV file; or a preset "
        f"({known}), a .toml or spec.json file, or a run folder",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=fields)


def divide_place(words: Sequence[str], *, others: str) -> tuple[list[str], str | None]:
    """The words of a verb for a finished run, without data.path=…, and the place given by it.

    Args:
        others: what the other words are, for the error.

    Raises:
        SpecError: another field is given, which a finished run does not change.
    """
    changes = [word for word in words if re.match(r"[a-z_]+(\.[a-z_0-9]+)+=", word)]
    if wrong := [word for word in changes if not word.startswith(_PLACE)]:
        raise SpecError(
            "a finished run does not change its fields",
            expected=f"{others}, and {_PLACE}… for images that were moved",
            received=" ".join(wrong),
            fix="leave it out, or train a new run with it",
        )
    place = changes[-1].removeprefix(_PLACE) if changes else None
    return [word for word in words if word not in changes], place


def read_spec(arguments: argparse.Namespace) -> RunSpec:
    """The spec of the images or the preset, with the fields that are changed."""
    changes = parse_assignments(arguments.overrides)
    spec = read_source(arguments.source, changes)
    if _names_images(arguments.source):
        return choose_backbone(spec, dotted_fields(changes), _say_in_lines)
    return spec


def read_source(source: str, changes: Mapping[str, Any], *, base: RunSpec | None = None) -> RunSpec:
    """The spec of a folder of images, CSV file, preset, spec file or run folder, with changes.

    Args:
        base: the other fields, for a folder of images or a CSV file; by default the defaults.
    """
    if not _names_images(source):
        base = load_spec(source)
    for sentence in describe_other_names(changes, base):
        say(sentence)
    images = Path(source) if _names_images(source) else None
    spec = make_spec(images, base=base, **changes)
    for sentence in describe_without_effect(changes, spec):
        say(sentence)
    return spec


def _names_images(source: str) -> bool:
    return Path(source).exists() and is_images(Path(source))


def say(text: str) -> None:
    """Print a sentence on standard error."""
    # What is printed to standard output may be read by another program.
    print(text, file=sys.stderr)  # noqa: T201


def _say_in_lines(text: str) -> None:
    """Print sentences on standard error, in lines of the terminal's width."""
    say(textwrap.fill(text, shutil.get_terminal_size().columns, break_on_hyphens=False))


def refuse(error: KerasTransferError) -> int:
    """Print an error of the user on standard error; its exit status."""
    say(f"\nerror: {error}")
    return USER_ERROR


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse's `type`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def run_verb(verb: Callable[[], int | None], *, stopped: str = STOPPED) -> int:
    """Run a verb; the exit status: its own or 0, 2 for the user's errors, 130 if interrupted.

    Args:
        stopped: what is said after an interruption: what there is, and how to go on.
    """
    use_onednn()
    speed_up_imports()
    logging.getLogger("keras_transfer").setLevel(logging.INFO)
    try:
        _check_backend()
        with _second_interrupt_ends():
            return verb() or 0
    except KerasTransferError as error:
        return refuse(error)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = _extra_with(package)
        if not extra or package == "keras_transfer":
            raise
        missing = RunError(
            f"this needs the package {package}, which is not installed",
            expected="one of the optional packages of keras_transfer",
            received=str(error),
            fix=f'pip install "keras_transfer[{extra}]"'
            + (", or unset KERAS_BACKEND" if extra == "jax" else ""),
        )
        return refuse(missing)
    except KeyboardInterrupt:
        print(f"\nstopped; {stopped}", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    except BrokenPipeError:
        # The program that reads the output, such as `head`, has closed the pipe.
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return refuse(storage_error(error, Path(os.fsdecode(error.filename))))


@contextlib.contextmanager
def _second_interrupt_ends() -> Iterator[None]:
    """Confirm the first SIGINT, which raises KeyboardInterrupt; a second one ends the process.

    Native code that is running, or that calls Python and drops its errors, can hold back or lose
    the KeyboardInterrupt. The signals are therefore counted in a thread. One that is raised where
    Python drops errors itself, in a `__del__`, is raised once more.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    before = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    repeated: list[int] = []
    watcher = threading.Thread(target=_count_interrupts, args=(receiver, repeated), daemon=True)
    watcher.start()
    hook = sys.unraisablehook

    def repeat(dropped: "sys.UnraisableHookArgs") -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            hook(dropped)
            return
        repeated.append(signal.SIGINT)
        # Later, because it would be dropped here as well.
        threading.Timer(_REPEAT_SECONDS, _interrupt_main).start()

    sys.unraisablehook = repeat
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.set_wakeup_fd(before)
        os.close(sender)
        watcher.join()
        os.close(receiver)


def _interrupt_main() -> None:
    """Send SIGINT to the main thread, which also ends what it waits for."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:  # On Windows.
        _thread.interrupt_main()


def _count_interrupts(receiver: int, repeated: list[int]) -> None:
    """Count signals, but for those that are raised once more."""
    is_first = True
    while received := os.read(receiver, 1):
        # A server has a handler of its own.
        if received[0] != signal.SIGINT or signal.getsignal(signal.SIGINT) is not _RAISES:
            continue
        if repeated:
            repeated.pop()
            continue
        if not is_first:
            os._exit(INTERRUPTED)
        print("\ninterrupted; Ctrl-C again ends the process at once", file=sys.stderr)  # noqa: T201
        sys.stderr.flush()
        is_first = False


def _extra_with(package: str) -> str:
    """The extra of this project that installs a package, '' if none does."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for requirement in importlib.metadata.requires("keras_transfer") or ():
            name = re.match(r"[\w-]+", requirement)
            extra = re.search(r"extra == ['\"](\w+)", requirement)
            if extra and name and name[0].replace("-", "_").lower() == package.lower():
                return extra[1]
    return ""


def _check_backend() -> None:
    """Raise RunError for a backend that is not supported, before Keras fails to import it."""
    known = ("tensorflow", "jax")
    # Unset, Keras chooses: by keras.json, or else TensorFlow.
    backend = os.environ.get("KERAS_BACKEND") or known[0]
    if backend not in known:
        similar = difflib.get_close_matches(backend.lower(), known, n=1)
        raise RunError(
            f"KERAS_BACKEND={backend} is not supported",
            expected=" or ".join(known),
            received=backend,
            fix=f"set KERAS_BACKEND={similar[0] if similar else known[0]}"
            + ("" if similar else ", or unset it"),
        )


def scratch_log() -> Path:
    """The file for TensorFlow's log output when there is no run folder."""
    # One per user of a machine, because users cannot write to each other's files.
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"keras_transfer-{user}.log"


def main_of(
    parse_and_run: Callable[[Sequence[str] | None], int | None], *, stopped: str = STOPPED
) -> Callable[..., int]:
    """Turn `parse_and_run(argv)` into a `main(argv=None)` that returns an exit status.

    `stopped` is as in `run_verb`.
    """

    def main(argv: Sequence[str] | None = None) -> int:
        return run_verb(lambda: parse_and_run(argv), stopped=stopped)

    return main
