"""The command line: a table of subcommands, one place where errors become one line and an exit code.

Each subcommand is a frozen dataclass, in the package that does its work or, where that takes several, in `commands`;
tyro reads its fields and docstrings.
Only the module of the chosen subcommand is imported, so that `thermoe --help` is quick and needs nothing.

Exit codes: 0 done, 1 the check that was asked for failed, 2 the input is wrong, 130 interrupted.
"""

import errno
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import thermoe
from thermoe.errors import ThermoeError

EXIT_WRONG_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_READER_GONE = 141  # what a shell reports for a program whose reader closed the pipe


class Command(Protocol):
    """What a subcommand's dataclass offers."""

    def execute(self) -> int:
        """Do the work; return the exit code."""
        ...


class Entry(NamedTuple):
    """Where a subcommand lives, and its line in the help."""

    module: str
    cls: str
    help: str


_TABLE: dict[str, Entry] = {
    "demo": Entry("thermoe.commands.demo", "Demo", "run the shipped model under several strategies; a report"),
    "run": Entry("thermoe.commands.run", "Run", "run a model and texts under strategies, into a run folder"),
    "doctor": Entry("thermoe.doctor", "Doctor", "what works on this machine: versions, sensors, model families"),
    "report": Entry("thermoe.analysis.command", "Report", "one HTML report of one or more run folders"),
    "monitor": Entry("thermoe.telemetry.command", "Monitor", "live sensors in the terminal"),
    "stress": Entry("thermoe.commands.stress", "Stress", "load a device for a bounded time, from a process of its own"),
    "profile": Entry("thermoe.profiling.command", "Profile", "measure operations on this GPU into a cost database"),
    "parse": Entry(
        "thermoe.profiling.parsing.command", "Parse", "kernels of nsys, ncu and torch.profiler files, with energy"
    ),
    "fit": Entry("thermoe.cost.command", "Fit", "fit a cost model to cost databases or plain tables"),
    "costs show": Entry("thermoe.cost.database_command", "CostsShow", "what a cost database holds"),
    "costs diff": Entry("thermoe.cost.diff_command", "CostsDiff", "compare two cost databases"),
    "costs merge": Entry("thermoe.cost.database_command", "CostsMerge", "join cost databases into one"),
    "costs plot": Entry("thermoe.commands.costs_plot", "CostsPlot", "draw what cost databases hold"),
    "costs report": Entry("thermoe.commands.costs_report", "CostsReport", "one HTML page of cost databases"),
    "costs parts": Entry(
        "thermoe.commands.costs_parts", "CostsParts", "expert MLP calls beside the sum of their parts, and why"
    ),
    "costs predict": Entry("thermoe.cost.database_command", "CostsPredict", "carry measured costs over to another GPU"),
    "costs import": Entry(
        "thermoe.cost.database_command", "CostsImport", "take a simulator's table as predicted costs"
    ),
    "costs eval": Entry("thermoe.cost.command", "CostsEval", "errors of a cost model on a table it has not seen"),
    "calibrate": Entry("thermoe.commands.calibrate", "Calibrate", "map the budgets of a model to quality and energy"),
}


def _is_shipped(entry: Entry) -> bool:
    """Whether the module is in this installation, without importing its package."""
    return Path(thermoe.__path__[0], *entry.module.split(".")[1:]).with_suffix(".py").is_file()


COMMANDS = {name: entry for name, entry in _TABLE.items() if _is_shipped(entry)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code; what a user can mend is told in one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _print_whatever_comes()
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
    except ThermoeError as err:
        return _fail(str(err))
    except KeyboardInterrupt:
        print("thermoe: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return EXIT_READER_GONE
    except OSError as err:
        return _fail(_describe(err))
    return code


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        print(_usage(COMMANDS), file=sys.stderr)
        return EXIT_WRONG_INPUT
    if arguments[0] in ("-h", "--help"):
        print(_usage(COMMANDS))
        return 0
    if arguments[0] == "--version":
        print(f"thermoe {thermoe.__version__}")
        return 0
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if len(arguments) >= words and name in COMMANDS:
            return _parse(name, arguments[words:]).execute()
    return _dispatch_group(arguments)


def _dispatch_group(arguments: list[str]) -> int:
    """Answer the first word of two-word commands, such as `costs`, and unknown words."""
    group = {name: entry for name, entry in COMMANDS.items() if name.startswith(f"{arguments[0]} ")}
    if group and arguments[1:] in (["-h"], ["--help"]):
        print(_usage(group))
        return 0
    got = " ".join(arguments[: 2 if group else 1])
    return _fail(f"no command {got!r}: choose from {', '.join(group or COMMANDS)}; thermoe --help explains them")


def _parse(name: str, arguments: list[str]) -> Command:
    entry = COMMANDS[name]
    command_class = getattr(import_module(entry.module), entry.cls)
    import tyro  # here, because the help of the whole does not need it

    return cast(Command, tyro.cli(command_class, args=arguments, prog=f"thermoe {name}"))


def _usage(commands: dict[str, Entry]) -> str:
    width = max(len(name) for name in commands) + 2
    lines = [
        "usage: thermoe COMMAND [OPTIONS]",
        "",
        "Mixture-of-Experts routing that knows what every expert costs.",
        "",
    ]
    lines += [f"  {name:<{width}}{entry.help}" for name, entry in commands.items()]
    lines += ["", "thermoe COMMAND --help explains the options of a command; thermoe --version prints the version."]
    return "\n".join(lines)


def _describe(err: OSError) -> str:
    reason = err.strerror or str(err) or type(err).__name__
    where = f": {err.filename}" if err.filename else ""
    remedy = "; free some space or choose another folder" if err.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{reason}{where}{remedy}"


def _fail(message: str) -> int:
    print(f"thermoe: error: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_WRONG_INPUT


def _print_whatever_comes() -> None:
    """Names out of files and paths may hold what the terminal's encoding lacks: it is escaped, as stderr does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _silence_stdout() -> None:
    """Let the interpreter's last flush go nowhere instead of failing on the closed pipe."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
