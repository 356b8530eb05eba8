"""What `benchmarks.counters` has ncu look at: experts at several sizes; launches between start and stop are profiled.

Arguments: cells as FORMAT:TOKENS[:SHAPE]. Prints a line of JSON for each: what a launch touches.
"""

import json
import sys

import torch

from benchmarks.kernels.cell import SHAPES, Cell, WeightStore
from benchmarks.kernels.formats import FORMATS
from benchmarks.kernels.own import public

LAYERS = 3  # the last one is profiled: the two before have filled the caches with other experts


def main() -> int:
    """Run every cell."""
    device = torch.device("cuda")
    expert_mlp = public("expert_mlp", "expert_mlp")
    for wanted in sys.argv[1:]:
        fmt, tokens, *rest = wanted.split(":")
        name = rest[0] if rest else "qwen3-30b-a3b"
        shape = SHAPES[name]
        cell = Cell(name, int(tokens), device, WeightStore(shape, device))
        experts = cell.store.layers(fmt, LAYERS)
        with torch.inference_mode():
            for turn in range(2):
                for layer in range(LAYERS):
                    given, last = cell.input(layer), turn == 1 and layer == LAYERS - 1
                    torch.cuda.synchronize()
                    if last:
                        torch.cuda.cudart().cudaProfilerStart()
                        torch.cuda._sleep(1)  # its kernel marks where a cell begins
                    expert_mlp(given.x_TD, given.ids_TK, given.weights_TK, experts[layer])
                    torch.cuda.synchronize()
                    if last:
                        torch.cuda.cudart().cudaProfilerStop()
        touched = cell.input(LAYERS - 1).distinct_experts
        said = {"format": fmt, "tokens": int(tokens), "shape": name, "distinct_experts": touched}
        print(json.dumps(said | {"expert_bytes": touched * FORMATS[fmt].expert_bytes(shape)}), flush=True)
        del experts, cell
        torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
