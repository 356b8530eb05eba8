"""When to ask a sensor of NVML: fields all in one call, slow ones seldom, silent ones hardly ever."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

_log = logging.getLogger(__name__)

#: Age up to which a sensor that changes slowly is not asked again [s].
SLOW_S = 1.0
#: Wait before a call that failed is tried again, and before one that is not supported is [s]: a failed call raises,
#: which costs more than an answer.
RETRY_FAILED_S, RETRY_UNSUPPORTED_S = 1.0, 30.0

#: NVML return codes: invalid argument, not supported, function not found.
_NO_SUCH_SENSOR = frozenset({2, 3, 13})
_CODE_OK = 0
#: Member of the value union by NVML value type.
_UNION_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")


class Call:
    """One way to ask; answers `None` without asking while it waits after a failure.

    Attributes:
        reason: Why it last failed.
    """

    def __init__(self, nvml: Any, ask: Callable[[], Any]) -> None:
        self._errors = (nvml.NVMLError, AttributeError)  # AttributeError: no such call in the library
        self._ask = ask
        self._due_s = -math.inf
        self.reason = "no value"

    def __call__(self, now_s: float) -> Any:
        """The answer, or `None`."""
        if now_s < self._due_s:
            return None
        try:
            return self._ask()
        except self._errors as error:
            self.reason = str(error)
            unsupported = isinstance(error, AttributeError) or error.value in _NO_SUCH_SENSOR
            self._due_s = now_s + (RETRY_UNSUPPORTED_S if unsupported else RETRY_FAILED_S)
            return None


class Sensor:
    """One reading, by the first of its calls that answers; a loss mid-run is reported once through `logging`.

    Args:
        name: Of the reading, for the report.
        calls: Ways to ask, the best first.
        every_s: Age up to which the last reading, or its absence, is held [s].
    """

    def __init__(self, name: str, calls: Sequence[Call], every_s: float = 0.0) -> None:
        self._name, self._calls, self._every_s = name, calls, every_s
        self._due_s = -math.inf
        self._held: Any = None
        self._worked = self._reported = False

    def read(self, now_s: float) -> Any:
        """The reading at `now_s`, at most `every_s` old, or `None`."""
        if now_s < self._due_s:
            return self._held
        self._due_s = now_s + self._every_s
        self._held = self._first_answer(now_s)
        if self._held is not None:
            self._worked = True
        elif self._worked and not self._reported:
            self._reported = True
            reason = self._calls[-1].reason
            _log.warning("sensor %s stopped working (%s); it reads None until it answers again", self._name, reason)
        return self._held

    def expire(self) -> None:
        """Ask again at the next read."""
        self._due_s = -math.inf

    def number(self, now_s: float, scale: float = 1.0) -> float | None:
        """The reading times `scale`."""
        value = self.read(now_s)
        return None if value is None else float(value) * scale

    def integer(self, now_s: float) -> int | None:
        """The reading as a whole number."""
        value = self.read(now_s)
        return None if value is None else int(value)

    def _first_answer(self, now_s: float) -> Any:
        for call in self._calls:
            value = call(now_s)
            if value is not None:
                return value
        return None


class Fields:
    """Values by field id, all asked for in one nvmlDeviceGetFieldValues.

    Attributes:
        values: What answered at the last refresh.
    """

    def __init__(self, nvml: Any, handle: Any, ids: Sequence[int]) -> None:
        self._due_s = dict.fromkeys(ids, -math.inf)
        self._wanted: list[int] = []
        self._ask = Call(nvml, lambda: nvml.nvmlDeviceGetFieldValues(handle, self._wanted))
        self.values: dict[int, float] = {}

    def refresh(self, now_s: float) -> None:
        """Ask once for every field but those found unsupported of late."""
        self._wanted = [number for number, due_s in self._due_s.items() if now_s >= due_s]
        answers = (self._ask(now_s) if self._wanted else None) or ()
        self.values = {}
        for answer in answers:
            if answer.nvmlReturn in _NO_SUCH_SENSOR:
                self._due_s[answer.fieldId] = now_s + RETRY_UNSUPPORTED_S
            elif answer.nvmlReturn == _CODE_OK and answer.valueType < len(_UNION_MEMBERS):
                self.values[answer.fieldId] = getattr(answer.value, _UNION_MEMBERS[answer.valueType])
