#include "weight_memory.h"

#include <algorithm>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>

#include <fstream>
#include <string>
#endif

namespace specdec::ops {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kPart = std::size_t{1} << 20;  // bytes that are in memory twice while copied

std::size_t whole_lines(std::size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

std::size_t code_bytes(const Matrix& matrix) {
  return static_cast<std::size_t>(matrix.tiles * matrix.tile_codes());
}

std::size_t fine_bytes(const Matrix& matrix) {
  return static_cast<std::size_t>(matrix.tiles * matrix.tile_fine());
}

std::size_t scale_bytes(const Matrix& matrix) {
  return static_cast<std::size_t>(matrix.tiles * matrix.tile_scales()) * sizeof(std::uint16_t);
}

}  // namespace

std::size_t WeightMemory::bytes_of(const Matrix& matrix) {
  return whole_lines(code_bytes(matrix)) + whole_lines(fine_bytes(matrix)) +
         whole_lines(scale_bytes(matrix));
}

Matrix WeightMemory::keep(const Matrix& matrix) {
  if (static_cast<std::size_t>(end_ - next_) < bytes_of(matrix)) return matrix;
  Matrix kept = matrix;
  kept.codes = static_cast<const std::uint8_t*>(copy(matrix.codes, code_bytes(matrix)));
  kept.fine = static_cast<const std::uint8_t*>(copy(matrix.fine, fine_bytes(matrix)));
  kept.scales = static_cast<const std::uint16_t*>(copy(matrix.scales, scale_bytes(matrix)));
  return kept;
}

const void* WeightMemory::copy(const void* source, std::size_t bytes) {
  std::uint8_t* const place = next_;
  const auto* const from = static_cast<const std::uint8_t*>(source);
  for (std::size_t begin = 0; begin < bytes; begin += kPart) {
    const std::size_t part = std::min(kPart, bytes - begin);
    std::memcpy(place + begin, from + begin, part);
    files_.give_back(from + begin, part);
  }
  next_ += whole_lines(bytes);
  return place;
}

#if defined(__linux__)

namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

bool gives_huge_pages() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string modes;
  std::getline(file, modes);
  return modes.find("[always]") != std::string::npos ||
         modes.find("[madvise]") != std::string::npos;
}

}  // namespace

WeightMemory::WeightMemory(std::size_t bytes) {
  if (bytes < kHugePage || !gives_huge_pages()) return;
  // What fills no huge page to its end is in small ones, so that none stays half empty.
  const std::size_t size = bytes + kHugePage;  // a mapping begins at any page
  void* const mapped =
      mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return;
  mapped_ = mapped;
  mapped_bytes_ = size;
  const auto address = reinterpret_cast<std::uintptr_t>(mapped);
  next_ = static_cast<std::uint8_t*>(mapped) + (kHugePage - address % kHugePage) % kHugePage;
  end_ = next_ + bytes;
  // Where it is refused, weights are in memory of the usual kind.
  static_cast<void>(madvise(next_, bytes, MADV_HUGEPAGE));
}

WeightMemory::~WeightMemory() {
  if (mapped_ != nullptr) munmap(mapped_, mapped_bytes_);
}

#else

WeightMemory::WeightMemory(std::size_t) {}
WeightMemory::~WeightMemory() = default;

#endif

}  // namespace specdec::ops
