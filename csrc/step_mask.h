#pragma once

#include <cstdint>

#include "aligned_buffer.h"

namespace specdec {

// The attention mask [width, past + width] of steps of one width: every row sees the valid columns
// of the past, and of the new columns its own and those before it. Kept from step to step, as only
// few columns become valid, or cease to be, between two of them.
class StepMask {
 public:
  struct Values {
    std::uint16_t allowed, blocked;
  };

  StepMask(std::int32_t width, std::int32_t past, const Values& values);

  // Lets the past's columns below `length` be seen, and no others.
  void show(std::int32_t length);

  std::int32_t width() const { return width_; }
  std::uint16_t* data() { return elements_.data(); }

 private:
  void fill(std::int32_t begin, std::int32_t end, std::uint16_t value);

  std::int32_t width_;
  std::int32_t past_;
  Values values_;
  std::int32_t shown_ = 0;  // columns of the past that are allowed now
  AlignedBuffer<std::uint16_t> elements_;
};

}  // namespace specdec
