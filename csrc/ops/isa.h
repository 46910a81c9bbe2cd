#pragma once

#include <string>

// Kernels are compiled for several instruction sets, each in its own file (*_avx512.cpp, ...), and
// chosen when an op's kernel is made. All give the same bits.

#if (defined(__x86_64__) || defined(_M_X64)) && defined(__GNUC__)  // GCC and Clang
#define SPECDEC_OPS_X86 1
#elif defined(__aarch64__) && defined(__GNUC__)
#define SPECDEC_OPS_ARM 1
#endif

namespace specdec::ops {

enum class Isa {
  plain,   // C++ alone
  avx2,    // with FMA and F16C
  avx512,  // F, BW, VL and VNNI
  neon,    // with dot products
};

// The instruction set that `name` means on this CPU: "auto" (the best), "plain", "avx2", "avx512" or
// "neon". Throws specdec::Error for one that the CPU has not.
Isa isa_named(const std::string& name);

}  // namespace specdec::ops
