// The grouped kernel as a CPU library: see grouped_on_cpu.h. The macros are those of Build.source().
#include "finish.cuh"

template <int WIDTH>
struct Product {
  static void add(float (&d)[VALUES], uint64_t a, uint64_t b, int keep) { add_product<EIGHT>(d, a, b, keep, WIDTH); }
  static void add(float (&d)[VALUES], const uint32_t (&a)[4], uint64_t b, int keep) { add_product(d, a, b, keep, WIDTH); }
};

#include "grouped.cuh"

extern "C" int run_on_cpu(const void* given, int blocks, uint32_t seed, int uneven) {
  const auto problem = cpu::launched_with<Problem>(given);
  cpu::products.clear();
  return cpu::run(blocks, THREADS, seed, uneven != 0, [&problem] { grouped_block(problem); }) ? 0 : 1;
}
extern "C" int problem_bytes() { return sizeof(Problem); }
