"""C1: every operation worth knowing the cost of, each able to build, run and check itself and to count its work.

What the sizes (D, I, E, k), rows and tokens of a case mean:

| operation | D | I | E, k | routed rows |
|---|---|---|---|---|
| expert_mlp, linear_fc1, activation, linear_fc2, dequant_unpack_op, dispatch, combine, router_topk | model width | expert width | experts, experts per token | tokens x k |
| router_gate, ttt_step | model width | 1 | experts, 1 | tokens |
| gemm (m, n, k) | k | n | 1, 1 | m |
| copy, elementwise, norm | columns | 1 | 1, 1 | rows |
| attention_decode | query heads x 128 | key heads x 128 | 1, 1 | sequences; `context` positions each |
| ttha_adapter_forward, ttha_update | features | hidden units | experts, 1 | layers x experts |
"""  # noqa: E501 - a table

from collections.abc import Mapping

from thermoe.errors import ConfigError
from thermoe.profiling.case import Case
from thermoe.profiling.operations.adaptation import ADAPTATION_OPERATIONS
from thermoe.profiling.operations.bench import INPUT_DISTRIBUTION, Operation, Setup, Workbench, relative_error
from thermoe.profiling.operations.dense import DENSE_OPERATIONS
from thermoe.profiling.operations.experts import EXPERT_OPERATIONS
from thermoe.profiling.operations.routing import ROUTING_OPERATIONS
from thermoe.profiling.operations.torch_moe import combine, dispatch, expert_mlp_reference, grouped_mm

__all__ = [
    "INPUT_DISTRIBUTION",
    "KERNEL_REVISION",
    "OPERATIONS",
    "Operation",
    "Setup",
    "Workbench",
    "combine",
    "dispatch",
    "expert_mlp_reference",
    "find_operation",
    "grouped_mm",
    "relative_error",
]

KERNEL_REVISION = "3"

OPERATIONS: Mapping[str, Operation] = {
    **EXPERT_OPERATIONS,
    **ROUTING_OPERATIONS,
    **DENSE_OPERATIONS,
    **ADAPTATION_OPERATIONS,
}


def find_operation(case: Case) -> Operation:
    """The operation of a case; a name that is not registered, or not with it, is a `ConfigError`."""
    operation = OPERATIONS.get(case.op)
    if operation is None:
        raise ConfigError(f"unknown operation {case.op}: choose from {', '.join(OPERATIONS)}")
    if case.impl not in operation.implementations:
        raise ConfigError(
            f"{case.op} has no implementation {case.impl}: choose from {', '.join(operation.implementations)}"
        )
    if case.dtype not in operation.dtypes:
        raise ConfigError(f"{case.op} knows no dtype {case.dtype}: choose from {', '.join(operation.dtypes)}")
    return operation
