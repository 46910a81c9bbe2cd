#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

// AddressSanitizer sees what is written behind memory of the heap, and not behind a mapping.
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
#define SPECDEC_MAPS_BUFFERS
#include <sys/mman.h>
#endif

namespace specdec {

// Zeroed memory at a 64-byte boundary, for a session to read and write. Large buffers cost no
// physical memory until they are touched, so a cache may be as long as the model's whole context.
template <class T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t size) : size_(size) {
    const std::size_t bytes = size * sizeof(T);
    block_ = std::unique_ptr<void, Free>(allocate(bytes), Free{bytes});
    if (!block_) throw std::bad_alloc();
    const auto address = reinterpret_cast<std::uintptr_t>(block_.get());
    data_ = reinterpret_cast<T*>((address + kAlignment - 1) / kAlignment * kAlignment);
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return size_; }
  T& operator[](std::size_t i) { return data_[i]; }

 private:
  static constexpr std::size_t kAlignment = 64;

#if defined(SPECDEC_MAPS_BUFFERS)
  // Pages of its own. calloc takes used memory where some is free, and touches it to clear it; what
  // is freed it keeps.
  static constexpr std::size_t kLarge = std::size_t{256} << 10;

  static void* allocate(std::size_t bytes) {
    if (bytes < kLarge) return std::calloc(bytes + kAlignment, 1);
    void* const mapped =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return mapped == MAP_FAILED ? nullptr : mapped;
  }

  struct Free {
    std::size_t bytes = 0;
    void operator()(void* block) const {
      if (bytes < kLarge) {
        std::free(block);
      } else {
        munmap(block, bytes);
      }
    }
  };
#else
  // calloc, because it takes untouched (and so zero) pages from the system where it can.
  static void* allocate(std::size_t bytes) { return std::calloc(bytes + kAlignment, 1); }

  struct Free {
    std::size_t bytes = 0;
    void operator()(void* block) const { std::free(block); }
  };
#endif

  std::unique_ptr<void, Free> block_;
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace specdec

#undef SPECDEC_MAPS_BUFFERS
