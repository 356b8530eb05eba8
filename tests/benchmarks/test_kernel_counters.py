"""What `benchmarks.counters` reads out of ncu's lines."""

from benchmarks.counters import METRICS, read_output

TIME, MEMORY = METRICS["time_ns"], METRICS["memory_pct_of_peak"]
PRINTED = f"""==PROF== Connected to process 5
==PROF== Profiling "spin_kernel" - 0: 0%....50%....100% - 1 pass
{{"format": "int4", "tokens": 1}}
{{"format": "bf16", "tokens": 16}}
==PROF== Disconnected from process 5
"ID","Kernel Name","{TIME}","{MEMORY}"
"","","nsecond","%"
"0","at::spin_kernel(long)","1000","0"
"1","thermoe_decode","16,032","41.5"
"2","at::spin_kernel(long)","1000","0"
"3","fill","900","1"
"4","thermoe_decode","184000","n/a"
"""


def test_kernels_go_to_the_cell_whose_mark_came_before():
    cells, kernels = read_output(PRINTED.splitlines())
    assert [cell["tokens"] for cell in cells] == [1, 16]
    assert [(k["cell"], k["kernel"]) for k in kernels] == [(0, "thermoe_decode"), (1, "fill"), (1, "thermoe_decode")]
    assert kernels[0]["time_ns"] == 16032
    assert kernels[0]["memory_pct_of_peak"] == 41.5
    assert kernels[2]["memory_pct_of_peak"] is None  # what ncu could not measure is nothing, not zero
    assert kernels[0]["stalls"]["wait"] is None


def test_without_a_table_there_is_no_kernel():
    assert read_output(["==ERROR== no permission"]) == ([], [])
