"""What is run: synthetic tensors, real text, and when it arrives."""

from thermoe.workloads.arrivals import ArrivalProcess, Arrivals
from thermoe.workloads.batches import Batch, TensorBatch, TextBatch, TextMode, Workload
from thermoe.workloads.generators import TENSOR_WORKLOADS, TensorWorkload, WorkloadGenerator
from thermoe.workloads.manager import DataLoaderManager, WorkloadFactory
from thermoe.workloads.stress_load import StressWork
from thermoe.workloads.stressor import Stressor, StressPlan, StressResult
from thermoe.workloads.text import TextBlocks, TextTokenizer, read_text

__all__ = [
    "TENSOR_WORKLOADS",
    "ArrivalProcess",
    "Arrivals",
    "Batch",
    "DataLoaderManager",
    "StressPlan",
    "StressResult",
    "StressWork",
    "Stressor",
    "TensorBatch",
    "TensorWorkload",
    "TextBatch",
    "TextBlocks",
    "TextMode",
    "TextTokenizer",
    "Workload",
    "WorkloadFactory",
    "WorkloadGenerator",
    "read_text",
]
