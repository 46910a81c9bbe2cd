#include "isa.h"

#include "op.h"

#if defined(SPECDEC_OPS_ARM) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace specdec::ops {
namespace {

bool has(Isa isa) {
  switch (isa) {
    case Isa::plain:
      return true;
#if defined(SPECDEC_OPS_X86)
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case Isa::avx512:
      return has(Isa::avx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni");
#elif defined(SPECDEC_OPS_ARM)
    case Isa::neon: {
#if defined(__linux__)
      constexpr unsigned long kDotProducts = 1ul << 20;  // HWCAP_ASIMDDP
      return (getauxval(AT_HWCAP) & kDotProducts) != 0;
#elif defined(__APPLE__)
      return true;  // all of Apple's 64-bit computers
#else
      return false;
#endif
    }
#endif
    default:
      return false;
  }
}

}  // namespace

Isa isa_named(const std::string& name) {
  constexpr struct {
    const char* name;
    Isa isa;
  } kBestFirst[] = {
      {"avx512", Isa::avx512}, {"avx2", Isa::avx2}, {"neon", Isa::neon}, {"plain", Isa::plain}};
  for (const auto& known : kBestFirst) {
    if (name != "auto" && name != known.name) continue;
    if (has(known.isa)) return known.isa;
    if (name != "auto") refuse("isa is \"" + name + "\", which this CPU has not");
  }
  refuse("isa is \"" + name + "\"; it must be \"auto\", \"avx512\", \"avx2\", \"neon\" or \"plain\"");
}

}  // namespace specdec::ops
