// Runs a kernel on a CPU: after the macros of its shape, KERNEL, device.cuh of this folder and the kernel's own parts.
extern "C" int run(const void* given, unsigned blocks, unsigned seed) {
    cpu::seed = seed;
    const auto a = cpu::launched_with<RouteArgs>(given);
    return cpu::launch(blocks, 32 * WARPS, sizeof(Shared), [&a] { KERNEL(a); }) ? 0 : 1;
}
extern "C" unsigned argument_bytes() { return sizeof(RouteArgs); }
