// Addresses must be multiples of what is read or written there, as on the device, where anything else is a fault: what a
// launch gives lies as it does there, and an access that does not fit ends the run with a message.
//
// Accesses by pointer are checked by the compiler (-fsanitize=alignment), which calls the last function of this file;
// those by instruction check their address themselves.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

namespace cpu {

[[noreturn]] inline void fail(const char* what, uint32_t at);  // ends the run; each machine has its own

// Shared memory of a block, from the start of what the launch gives.
class SharedMemory {
  struct alignas(1024) Kilobyte {
    uint8_t byte[1024];
  };
  std::vector<Kilobyte> kilobytes;

 public:
  SharedMemory(size_t bytes, uint8_t garbage) {
    Kilobyte one;
    std::memset(&one, garbage, sizeof(one));
    kilobytes.assign((bytes + 1023) / 1024, one);
  }
  uint8_t* data() { return kilobytes.data()->byte; }
};

// A kernel's arguments, as aligned as a launch has them; a test's lie anywhere.
template <class Arguments>
Arguments launched_with(const void* given) {
  Arguments arguments;
  std::memcpy(&arguments, given, sizeof(arguments));
  return arguments;
}

inline void expect_multiple(const void* address, uint32_t of, const char* what) {
  const auto beyond = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(address) % of);
  if (beyond != 0) fail(what, beyond);
}

struct TypeName {
  uint16_t kind, details;
  char text[1];  // and on
};
struct Access {  // as the compiler describes it
  const char* file;
  uint32_t line, column;
  const TypeName* type;
  uint8_t log_alignment, kind;
};

}  // namespace cpu

extern "C" [[gnu::used, gnu::visibility("hidden")]] void __ubsan_handle_type_mismatch_v1_abort(void* data, void* address) {
  const auto& access = *static_cast<const cpu::Access*>(data);
  char what[256];
  std::snprintf(what, sizeof(what), "%s:%u: %s not aligned to %u bytes, modulo 1024", access.file, access.line,
                access.type->text, 1u << access.log_alignment);
  cpu::fail(what, static_cast<uint32_t>(reinterpret_cast<uintptr_t>(address) % 1024));
}
