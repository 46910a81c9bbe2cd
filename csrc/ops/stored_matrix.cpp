#include "stored_matrix.h"

#include "mapped_files.h"

#if defined(__linux__)
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace specdec::ops {

StoredMatrix::StoredMatrix(const Matrix& matrix) : matrix_(matrix) {
  const auto tiles = static_cast<std::size_t>(matrix.tiles);
  codes_.open(matrix.codes, tiles * static_cast<std::size_t>(matrix.tile_codes()));
  fine_.open(matrix.fine, tiles * static_cast<std::size_t>(matrix.tile_fine()));
  scales_.open(matrix.scales, 2 * tiles * static_cast<std::size_t>(matrix.tile_scales()));
}

StoredMatrix::~StoredMatrix() {
  codes_.close();
  fine_.close();
  scales_.close();
}

Matrix StoredMatrix::tile(std::int64_t tile, Tile& memory) const {
  Matrix found = matrix_;
  found.tiles = 1;
  found.codes += tile * matrix_.tile_codes();
  found.fine += tile * matrix_.tile_fine();
  found.scales += tile * matrix_.tile_scales();
  memory.codes.resize(static_cast<std::size_t>(matrix_.tile_codes()));
  memory.fine.resize(static_cast<std::size_t>(matrix_.tile_fine()));
  memory.scales.resize(static_cast<std::size_t>(matrix_.tile_scales()));
  const std::size_t codes = memory.codes.size();
  const std::size_t fine = memory.fine.size();
  const std::size_t scales = 2 * memory.scales.size();
  const auto t = static_cast<std::uint64_t>(tile);
  if (codes_.read(memory.codes.data(), codes, t * codes)) found.codes = memory.codes.data();
  if (fine_.read(memory.fine.data(), fine, t * fine)) found.fine = memory.fine.data();
  if (scales_.read(memory.scales.data(), scales, t * scales)) found.scales = memory.scales.data();
  return found;
}

#if defined(__linux__)

void StoredMatrix::File::open(const void* memory, std::size_t bytes) {
  const MappedFiles::Place place = MappedFiles().find(memory, bytes);
  if (place.path.empty()) return;
  const int opened = ::open(place.path.c_str(), O_RDONLY | O_CLOEXEC);
  if (opened < 0) return;
  // By that name there may be another file by now.
  struct stat about {};
  if (fstat(opened, &about) != 0 || static_cast<std::uint64_t>(about.st_ino) != place.inode) {
    ::close(opened);
    return;
  }
  handle = opened;
  offset = place.offset;
}

bool StoredMatrix::File::read(void* memory, std::size_t bytes, std::uint64_t from) const {
  return handle >= 0 && pread(handle, memory, bytes, static_cast<off_t>(offset + from)) ==
                            static_cast<ssize_t>(bytes);
}

void StoredMatrix::File::close() const {
  if (handle >= 0) ::close(handle);
}

#else

void StoredMatrix::File::open(const void*, std::size_t) {}
bool StoredMatrix::File::read(void*, std::size_t, std::uint64_t) const { return false; }
void StoredMatrix::File::close() const {}

#endif

}  // namespace specdec::ops
