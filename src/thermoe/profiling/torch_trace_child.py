"""`python -m thermoe.profiling.torch_trace_child TRACE SCRIPT [ARGUMENT ...]`: run a script under torch.profiler.

The trace goes to TRACE, with UUID and bus of each CUDA device beside the events, so that a log of power can be
joined to the right one. The exit code is the script's.
"""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from thermoe.profiling.trace_devices import DEVICES_MEMBER, device_identities


def main() -> int:
    """Run, export, and hand on the script's exit code; its exceptions pass through."""
    trace, script, *arguments = sys.argv[1:]
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))  # as python SCRIPT does
    code: Any = 0
    with profile(activities=activities) as profiler:
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            code = end.code
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        profiler.add_metadata_json(DEVICES_MEMBER, json.dumps(device_identities()))  # a trace that is closed takes none
    profiler.export_chrome_trace(trace)
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
        return 1
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
