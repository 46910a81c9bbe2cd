#include "step_mask.h"

#include <algorithm>

namespace specdec {

StepMask::StepMask(std::int32_t width, std::int32_t past, const Values& values)
    : width_(width),
      past_(past),
      values_(values),
      elements_(static_cast<std::size_t>(width) * (static_cast<std::size_t>(past) + width)) {
  fill(0, past + width, values.blocked);
  for (std::int32_t row = 0; row < width; ++row) {
    std::uint16_t* own = data() + static_cast<std::size_t>(row) * (past + width) + past;
    std::fill(own, own + row + 1, values.allowed);
  }
}

void StepMask::show(std::int32_t length) {
  if (length > shown_) fill(shown_, length, values_.allowed);
  if (length < shown_) fill(length, shown_, values_.blocked);
  shown_ = length;
}

void StepMask::fill(std::int32_t begin, std::int32_t end, std::uint16_t value) {
  for (std::int32_t row = 0; row < width_; ++row) {
    std::uint16_t* columns = data() + static_cast<std::size_t>(row) * (past_ + width_);
    std::fill(columns + begin, columns + end, value);
  }
}

}  // namespace specdec
