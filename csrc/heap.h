#pragma once

#include <cstdlib>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace specdec {

// Gives the heap's free pages back to the system. glibc keeps them behind whatever is still in use:
// what reading a large file into a small table leaves behind would stay for good.
inline void give_back_free_memory() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

}  // namespace specdec
