#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace specdec {

// Zeroed memory at a 64-byte boundary, for a session to read and write. Large buffers cost no
// physical memory until they are touched, so a cache may be as long as the model's whole context.
template <class T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t size) : size_(size) {
    // calloc, because it takes untouched (and so zero) pages from the system where it can.
    block_.reset(std::calloc(size * sizeof(T) + kAlignment, 1));
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
  struct Free {
    void operator()(void* block) const { std::free(block); }
  };
  std::unique_ptr<void, Free> block_;
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace specdec
