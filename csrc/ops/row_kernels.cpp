#include "row_kernels.h"

#include <algorithm>

namespace specdec::ops {

void Matrix::ask_for(std::int64_t tile) const {
#if defined(__GNUC__)
  constexpr std::int64_t kBytes = 1536;
  constexpr std::int64_t kLine = 64;
  const std::uint8_t* first = codes + tile * tile_codes();
  for (std::int64_t i = 0; i < std::min(kBytes, tile_codes()); i += kLine) {
    __builtin_prefetch(first + i);
  }
  __builtin_prefetch(scales + tile * tile_scales());
#else
  static_cast<void>(tile);
#endif
}

const RowKernels& row_kernels(Isa isa) {
  switch (isa) {
#if defined(SPECDEC_OPS_X86)
    case Isa::avx512:
      return avx512_row_kernels();
    case Isa::avx2:
      return avx2_row_kernels();
#elif defined(SPECDEC_OPS_ARM)
    case Isa::neon:
      return neon_row_kernels();
#endif
    default:
      return plain_row_kernels();
  }
}

}  // namespace specdec::ops
