#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace specdec::ops {

// What was mapped from files when this was made. The runtime maps weights from the model's file: a page
// of them that was read counts as the process's memory until it is given back, and comes from the file
// again when it is read again.
class MappedFiles {
 public:
  struct Place {
    std::string path;      // empty: the memory is no file's
    std::uint64_t offset;  // of the memory, in the file
    std::uint64_t inode;   // that the file had
  };

  MappedFiles();

  // Where all of this memory was mapped from.
  Place find(const void* memory, std::size_t bytes) const;

  // Gives pages that hold any of this memory back to the system; nothing where it is no file's, since
  // of other memory that would be the end. For memory that is still mapped.
  void give_back(const void* memory, std::size_t bytes) const;

 private:
  struct Range {
    std::uintptr_t begin, end;
    std::uint64_t offset, inode;
    std::string path;
  };
  const Range* range_of(std::uintptr_t begin, std::uintptr_t end) const;  // null: of no file

  std::vector<Range> files_;
};

}  // namespace specdec::ops
