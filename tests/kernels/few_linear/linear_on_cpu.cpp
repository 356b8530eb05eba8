// The linear kernel as a CPU library: see linear_on_cpu.h. The tokens are there when the launch before has ended, and
// not a moment earlier.
#include "kernel.cuh"

extern "C" int run_on_cpu(const void* given, int blocks, int shared_bytes, const void* x, int64_t x_bytes,
                          uint32_t seed, int uneven) {
  const auto problem = cpu::launched_with<Problem>(given);
  const auto kernel = [&problem] { linear_block(problem); };
  cpu::delays.clear();
  cpu::before_waited_for = cpu::before_ended = false;
  cpu::end_before = [=, &problem] { std::memcpy(const_cast<uint16_t*>(problem.x), x, x_bytes); };
  const bool ended = cpu::run(blocks, THREADS, seed, uneven != 0, kernel, SHARED_START + shared_bytes);
  return ended && cpu::before_ended ? 0 : 1;
}
extern "C" int problem_bytes() { return sizeof(Problem); }
extern "C" int pitch() { return PITCH; }
extern "C" int head_bytes() { return HEAD_BYTES; }
