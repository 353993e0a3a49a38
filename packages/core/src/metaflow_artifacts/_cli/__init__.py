"""The command line, `metaflow-artifacts`: its parser and its exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

from metaflow_artifacts import __version__
from metaflow_artifacts._cli import cache, copying, reading, upkeep, usage
from metaflow_artifacts._cli.output import escape, print_json
from metaflow_artifacts._cli.roots import missing_store
from metaflow_artifacts.errors import ArtifactError, ArtifactNotFound, CorruptArtifact, UsageError

__all__ = ["main", "parser"]

_EXIT_CODES = """exit codes:
    0  the command was carried out and found nothing wrong
    1  an artifact or the store does not exist, or is damaged
    2  the command was not carried out: wrong usage, or the store or the target directory cannot be used
  130  it was interrupted (Ctrl-C); it can be run again
"""


def parser() -> argparse.ArgumentParser:
    """The parser of all commands. The parsed options have `run`, the function that carries out the command."""
    top = _Parser(
        prog="metaflow-artifacts",
        description="Lists, fetches and checks the models and checkpoints in a store, and removes what is not needed.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    top.set_defaults(root=None, json=False)
    # The same options before the command and after it: without a default, one parser does not undo the other's.
    common = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    both = (top, common)
    for options in both:
        options.add_argument(
            "--root",
            metavar="ROOT",
            default=argparse.SUPPRESS,
            help="the store: a directory, s3://bucket/prefix, gs://bucket/prefix, or the address of an Azure "
            "container; by default the datastore that Metaflow is configured for",
        )
        options.add_argument(
            "--json",
            action="store_true",
            default=argparse.SUPPRESS,
            help="print one JSON document, for programs; an error is one too, with the member error",
        )
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, run: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, parents=[common], help=about, description=about[0].upper() + about[1:] + ".")
        made.set_defaults(run=run)
        return made

    reading.add_commands(command)
    copying.add_commands(command)
    usage.add_commands(command)
    upkeep.add_commands(command)
    cache.add_commands(command)
    return top


class _UsageError(SystemExit):
    """The arguments are wrong. What argparse says of that is printed already."""

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        with suppress(OSError):
            self.print_usage(sys.stderr)
            print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise _UsageError(message)


def _print_error(kind: str, message: str, code: int) -> None:
    print_json({"error": {"kind": kind, "message": message, "exit_code": code}})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. By default, `arguments` are the arguments of the process."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # The process was started with this stream closed.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            # A character that the encoding of the terminal or pipe lacks is written as its escape sequence.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has closed the pipe.
        code = 0
    except OSError as error:
        with suppress(OSError):
            print(f"metaflow-artifacts: cannot print the output: {escape(str(error))}", file=sys.stderr)
        code = 2
    _drop_unwritten()
    return code


def _run(arguments: Sequence[str]) -> int:
    options = None
    try:
        options = parser().parse_args(arguments)
        code = _carry_out(options)
    except _UsageError as usage:
        if "--json" in arguments:
            _print_error("UsageError", usage.message, 2)
        raise
    except ArtifactError as error:
        message = str(error)
        if options is not None and isinstance(error, ArtifactNotFound):
            message = missing_store(options) or message
        code = 1 if isinstance(error, (ArtifactNotFound, CorruptArtifact)) else 2
        # The exit code says the same where nobody reads this.
        with suppress(OSError):
            print(f"metaflow-artifacts: {escape(message)}", file=sys.stderr)
        # A command that has printed its document raises what stopped it, which the document says.
        if options is not None and options.json and not getattr(options, "printed", False):
            with suppress(OSError):
                _print_error(type(error).__name__, message, code)
                sys.stdout.flush()
    except KeyboardInterrupt:
        print("metaflow-artifacts: interrupted", file=sys.stderr)
        return 130
    return code


def _carry_out(options: argparse.Namespace) -> int:
    try:
        code: int = options.run(options)
    except FileNotFoundError as error:
        # Importing Metaflow asks for the working directory too, and does not say what is wrong.
        if isinstance(error, ArtifactError) or not _working_directory_is_gone():
            raise
        raise UsageError("the working directory is gone; change to another one") from error
    return code


def _working_directory_is_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _drop_unwritten() -> None:
    """Drop what a stream does not take. Python would print an error, or change the exit code, when it exits."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
