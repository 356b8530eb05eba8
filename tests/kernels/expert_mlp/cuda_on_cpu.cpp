// The decode kernel as a CPU library: see cuda_on_cpu.h. THERMOE_FORMAT is the format, as for the device.
#include "bytes.cuh"
#include "kernel.cuh"
#include "planes.cuh"

extern "C" int run_on_cpu(const void* given, int blocks, uint32_t seed, int uneven) {
  const auto problem = cpu::launched_with<Problem>(given);
  const auto kernel = [&problem] { decode_block<THERMOE_FORMAT>(problem); };
  return cpu::run(blocks, THREADS, seed, uneven != 0, kernel) ? 0 : 1;
}
extern "C" int problem_bytes() { return sizeof(Problem); }
