"""A stand-in for the module pynvml: as many sensors as it is given, each of which may fail."""

import ctypes
from types import ModuleType, SimpleNamespace


class FieldValue(ctypes.Union):
    _fields_ = (  # the union of nvml.h
        ("dVal", ctypes.c_double),
        ("uiVal", ctypes.c_uint),
        ("ulVal", ctypes.c_ulong),
        ("ullVal", ctypes.c_ulonglong),
        ("sllVal", ctypes.c_longlong),
        ("siVal", ctypes.c_int),
        ("usVal", ctypes.c_ushort),
    )


class NVMLError(Exception):
    value = 999


class NotSupportedError(NVMLError):
    value = 3


MEMBERS = ["dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal"]


class FakeNvml(ModuleType):
    """Attributes:
    fields: id -> (value type, value); a missing id answers "not supported".
    answers: name of a call -> its value, or an exception to raise; a missing name is no call at all.
    codes: id of a field -> its return code instead of a value.
    asked: names of the device calls made, and the ids of fields asked for, in order.
    """

    NVMLError = NVMLError

    def __init__(self, fields=None, answers=None, devices=2):
        super().__init__("pynvml")
        self.fields = dict(fields or {})
        self.answers = dict(answers or {})
        self.codes = {}
        self.asked = []
        self.devices = devices
        self.opened = 0
        self.init_error = None
        self.thresholds = {0: 95, 1: 89, 2: 95}
        self.clocks = {1: 1980, 2: 3201}

    def nvmlInit(self):  # noqa: N802
        if self.init_error:
            raise self.init_error
        self.opened += 1

    def nvmlShutdown(self):  # noqa: N802
        self.opened -= 1

    def nvmlDeviceGetCount(self):  # noqa: N802
        return self.devices

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return f"handle {index}"

    def nvmlDeviceGetTemperatureThreshold(self, _handle, which):  # noqa: N802
        if which not in self.thresholds:
            raise NotSupportedError("Not Supported")
        return self.thresholds[which]

    def nvmlDeviceGetClockInfo(self, _handle, which):  # noqa: N802
        if which not in self.clocks:
            raise NotSupportedError("Not Supported")
        return self.clocks[which]

    def nvmlDeviceGetFieldValues(self, _handle, ids):  # noqa: N802
        if isinstance(self.fields, Exception):
            raise self.fields
        return [self._field(number) for number in ids]

    def _field(self, number):
        value_type, value = self.fields.get(number, (0, 0))
        union = FieldValue()
        if number in self.fields:
            setattr(union, MEMBERS[value_type], value)
        self.asked.append(number)
        code = self.codes.get(number, 0 if number in self.fields else 3)
        return SimpleNamespace(fieldId=number, nvmlReturn=code, valueType=value_type, value=union)

    def __getattribute__(self, name):
        if name.startswith("nvmlDeviceGet"):
            self.asked.append(name)
        return super().__getattribute__(name)

    def __getattr__(self, name):
        answers = self.__dict__.get("answers", {})
        if name not in answers:
            raise AttributeError(name)

        def call(*_arguments):
            answer = answers[name]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call


def h200():
    """What the sensors of an H200 answer: no fan, all else present."""
    return FakeNvml(
        fields={82: (1, 47), 83: (3, 12_345_678_901), 185: (1, 598_250), 186: (1, 691_125)},
        answers={
            "nvmlDeviceGetTemperature": 55,
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=97, memory=41),
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=57_982_058_496, total=150_000_000_000),
            "nvmlDeviceGetFanSpeed": NotSupportedError("Not Supported"),
            "nvmlDeviceGetPerformanceState": 0,
            "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
        },
    )
