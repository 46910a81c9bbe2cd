#include "row_kernels.h"

#include <algorithm>

namespace specdec::ops {

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
