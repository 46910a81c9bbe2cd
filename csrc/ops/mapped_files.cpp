#include "mapped_files.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <fstream>
#endif

namespace specdec::ops {

#if defined(__linux__)

MappedFiles::MappedFiles() {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    Range range{};
    char permissions[5] = {};
    int path = 0;  // where it begins in the line
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " %4s %" SCNx64 " %*s %" SCNu64 " %n",
                    &range.begin, &range.end, permissions, &range.offset, &range.inode,
                    &path) == 5 &&
        range.inode != 0) {
      range.path = line.substr(static_cast<std::size_t>(path));
      files_.push_back(std::move(range));
    }
  }
}

const MappedFiles::Range* MappedFiles::range_of(std::uintptr_t begin, std::uintptr_t end) const {
  const auto found = std::find_if(files_.begin(), files_.end(), [&](const Range& range) {
    return range.begin <= begin && end <= range.end;
  });
  return found == files_.end() ? nullptr : &*found;
}

MappedFiles::Place MappedFiles::find(const void* memory, std::size_t bytes) const {
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  const Range* const range = range_of(address, address + bytes);
  if (range == nullptr) return {};
  return {range->path, range->offset + (address - range->begin), range->inode};
}

void MappedFiles::give_back(const void* memory, std::size_t bytes) const {
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  const std::uintptr_t begin = address / page * page;
  const std::uintptr_t end = (address + bytes + page - 1) / page * page;
  if (range_of(begin, end) == nullptr) return;
  static_cast<void>(madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED));
}

#else

MappedFiles::MappedFiles() = default;
MappedFiles::Place MappedFiles::find(const void*, std::size_t) const { return {}; }
void MappedFiles::give_back(const void*, std::size_t) const {}

#endif

}  // namespace specdec::ops
