#include "op.h"

#include <algorithm>
#include <string>
#include <type_traits>

#include "../error.h"

namespace specdec::ops {
namespace {

// Refuses with a message where the status is a failure. Calls are many and short: a message is only
// put together when it is needed.
template <class Message>
void check(const OrtApi* api, OrtStatus* status, const Message& message) {
  if (status == nullptr) return;
  abi::ReleaseStatus::of(api)(status);
  if constexpr (std::is_convertible_v<const Message&, const char*>) {
    refuse(message);
  } else {
    refuse(message());
  }
}

std::string missing(const char* kind, const char* name, const char* type) {
  return std::string(kind) + " " + name + type + " is missing";
}

class ShapeInfo {
 public:
  ShapeInfo(const OrtApi* api, const OrtValue* value) : api_(api) {
    check(api, abi::GetTensorTypeAndShape::of(api)(value, &info_), "an input is not a tensor");
  }
  ~ShapeInfo() { abi::ReleaseTensorTypeAndShapeInfo::of(api_)(info_); }
  ShapeInfo(const ShapeInfo&) = delete;
  ShapeInfo& operator=(const ShapeInfo&) = delete;

  const OrtTensorTypeAndShapeInfo* get() const { return info_; }

 private:
  const OrtApi* api_;
  OrtTensorTypeAndShapeInfo* info_ = nullptr;
};

}  // namespace

void refuse(const std::string& message) { throw Error(ErrorCode::invalid_input, message); }

Shape::Shape(std::initializer_list<std::int64_t> dims) : rank_(dims.size()) {
  if (rank_ > kMaxRank) refuse("a tensor has more than " + std::to_string(kMaxRank) + " dimensions");
  std::copy(dims.begin(), dims.end(), dims_.begin());
}

bool Shape::operator==(const Shape& other) const {
  return rank_ == other.rank_ && dims_ == other.dims_;
}

std::string Shape::text() const {
  std::string text = "[";
  for (std::size_t i = 0; i < rank_; ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(dims_[i]);
  }
  return text + "]";
}

class Tensors {
 public:
  static Shape shape(const OrtApi* api, const OrtValue* value) {
    const ShapeInfo info(api, value);
    Shape shape;
    check(api, abi::GetDimensionsCount::of(api)(info.get(), &shape.rank_), "a shape is unknown");
    if (shape.rank_ > Shape::kMaxRank) {
      refuse("an input has " + std::to_string(shape.rank_) + " dimensions; at most " +
             std::to_string(Shape::kMaxRank) + " are known");
    }
    check(api, abi::GetDimensions::of(api)(info.get(), shape.dims_.data(), shape.rank_),
          "a shape is unknown");
    return shape;
  }
};

Shape Tensor::shape() const { return Tensors::shape(api_, value_); }

ElementType Tensor::type() const {
  const ShapeInfo info(api_, value_);
  int type = 0;
  check(api_, abi::GetTensorElementType::of(api_)(info.get(), &type), "a tensor's type is unknown");
  return static_cast<ElementType>(type);
}

const void* Tensor::raw() const {
  void* data = nullptr;
  // There is no other function for reading; nothing is written through it.
  check(api_, abi::GetTensorMutableData::of(api_)(const_cast<OrtValue*>(value_), &data),
        "an input has no memory");
  return data;
}

std::int64_t Node::integer(const char* attribute) const {
  std::int64_t value = 0;
  check(api_, abi::KernelInfoGetInt64::of(api_)(info_, attribute, &value),
        [&] { return missing("attribute", attribute, " (an integer)"); });
  return value;
}

float Node::real(const char* attribute) const {
  float value = 0;
  check(api_, abi::KernelInfoGetFloat::of(api_)(info_, attribute, &value),
        [&] { return missing("attribute", attribute, " (a float)"); });
  return value;
}

std::string Node::text(const char* attribute, const char* fallback) const {
  char value[32];
  std::size_t size = sizeof value;
  OrtStatus* status = abi::KernelInfoGetString::of(api_)(info_, attribute, value, &size);
  if (status != nullptr) {
    abi::ReleaseStatus::of(api_)(status);
    if (size > sizeof value) refuse(std::string("attribute ") + attribute + " is too long");
    return fallback;
  }
  return std::string(value, size - 1);  // size counts the final zero
}

Tensor Node::constant(std::size_t i, const char* name) const {
  int constant = 0;
  const OrtValue* value = nullptr;
  check(api_, abi::KernelInfoGetConstantInput::of(api_)(info_, i, &constant, &value),
        [&] { return missing("input", name, ""); });
  if (constant == 0 || value == nullptr) {
    refuse(std::string("input ") + name + " must be an initializer");
  }
  return {api_, value};
}

bool Node::has_constant(std::size_t i) const {
  int constant = 0;
  const OrtValue* value = nullptr;
  OrtStatus* status = abi::KernelInfoGetConstantInput::of(api_)(info_, i, &constant, &value);
  if (status != nullptr) abi::ReleaseStatus::of(api_)(status);
  return status == nullptr && constant != 0 && value != nullptr;
}

bool Call::has_input(std::size_t i) const {
  std::size_t count = 0;
  check(api_, abi::KernelContextGetInputCount::of(api_)(context_, &count), "no inputs");
  if (i >= count) return false;
  const OrtValue* value = nullptr;
  check(api_, abi::KernelContextGetInput::of(api_)(context_, i, &value), "an input is missing");
  return value != nullptr;
}

Tensor Call::input(std::size_t i) const {
  const OrtValue* value = nullptr;
  check(api_, abi::KernelContextGetInput::of(api_)(context_, i, &value), "an input is missing");
  if (value == nullptr) refuse("input " + std::to_string(i) + " is missing");
  return {api_, value};
}

void* Call::raw_output(std::size_t i, const Shape& shape) const {
  std::size_t count = 0;
  check(api_, abi::KernelContextGetOutputCount::of(api_)(context_, &count), "no outputs");
  if (i >= count) return nullptr;
  OrtValue* value = nullptr;
  check(api_,
        abi::KernelContextGetOutput::of(api_)(context_, i, shape.dims(), shape.rank(), &value),
        [&] {
          return "there is no memory of shape " + shape.text() + " for output " + std::to_string(i);
        });
  if (value == nullptr) return nullptr;
  void* data = nullptr;
  check(api_, abi::GetTensorMutableData::of(api_)(value, &data), "an output has no memory");
  return data;
}

void Call::run_parallel(std::size_t count, void (*work)(void*, std::size_t), void* data) const {
  check(api_, abi::KernelContextParallelFor::of(api_)(context_, work, count, 0, data),
        "the session's threads could not be used");
}

}  // namespace specdec::ops
