"""Errors a user can act on: each message says what was got, what was needed and what to do."""


class ThermoeError(Exception):
    """Something the user can mend; the command line prints it in one line and exits with 2."""


class ConfigError(ThermoeError):
    """A setting, a file or an argument is wrong."""


class DataError(ThermoeError):
    """A file that was to be read is missing, empty, truncated or of another format."""


class TelemetryError(ThermoeError):
    """A sensor or a telemetry source cannot be used at all (a silent sensor reads `None` instead)."""


class CostError(ThermoeError):
    """A cost was asked for that no data and no physics can answer."""


class UnsupportedModelError(ThermoeError):
    """The model cannot be attached to, or not in the form it was loaded in."""


class BudgetError(ThermoeError):
    """A budget cannot be met by any choice the router has."""
