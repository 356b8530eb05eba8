// Runs a kernel on a CPU: after the macros of its shape, KERNEL, device.cuh of this folder and the kernel's own parts.
extern "C" void run(const RouteArgs* a, unsigned blocks, unsigned seed) {
    cpu::seed = seed;
    cpu::launch(blocks, 32 * WARPS, sizeof(Shared), [a] { KERNEL(*a); });
}
extern "C" unsigned argument_bytes() { return sizeof(RouteArgs); }
