#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "runtime_abi.h"

namespace specdec::ops {

// What an op of ONNX Runtime is written with. An op declares its operands and how a kernel is made
// from a node's attributes (Declaration); a kernel computes (Kernel). Both throw specdec::Error: the
// runtime then reports the op's name and the message.

enum class ElementType : int {
  any = 0,
  float32 = 1,
  uint8 = 2,
  uint16 = 4,
  int32 = 6,
  int64 = 7,
  float16 = 10,
};

enum class Presence : int {
  required = abi::kRequired,
  optional = abi::kOptional,  // as an input: may be absent; as an output: may be unwanted
  variadic = abi::kVariadic,  // one or more, to the end, not all of one type
};

struct Operand {
  const char* name;
  ElementType type;
  Presence presence = Presence::required;
};

class Shape {
 public:
  static constexpr std::size_t kMaxRank = 6;

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> dims);

  std::size_t rank() const { return rank_; }
  std::int64_t operator[](std::size_t i) const { return dims_[i]; }
  const std::int64_t* dims() const { return dims_.data(); }
  bool operator==(const Shape& other) const;
  bool operator!=(const Shape& other) const { return !(*this == other); }
  std::string text() const;  // for messages: "[1, 8, 576]"

 private:
  friend class Tensors;
  std::size_t rank_ = 0;
  std::array<std::int64_t, kMaxRank> dims_{};
};

// A tensor of the runtime's, for as long as the call in which it was given.
class Tensor {
 public:
  Tensor(const OrtApi* api, const OrtValue* value) : api_(api), value_(value) {}

  Shape shape() const;  // throws where the rank is above Shape::kMaxRank
  ElementType type() const;

  template <class T>
  const T* data() const {
    return static_cast<const T*>(raw());
  }

 private:
  const void* raw() const;

  const OrtApi* api_;
  const OrtValue* value_;
};

// A node, when its kernel is made.
class Node {
 public:
  Node(const OrtApi* api, const OrtKernelInfo* info) : api_(api), info_(info) {}

  std::int64_t integer(const char* attribute) const;
  float real(const char* attribute) const;
  std::string text(const char* attribute, const char* fallback) const;

  // Input i, which must be an initializer: `name` is for the message.
  Tensor constant(std::size_t i, const char* name) const;
  bool has_constant(std::size_t i) const;  // false for an optional input that is absent

 private:
  const OrtApi* api_;
  const OrtKernelInfo* info_;
};

// One call of a kernel.
class Call {
 public:
  Call(const OrtApi* api, OrtKernelContext* context) : api_(api), context_(context) {}

  bool has_input(std::size_t i) const;  // false for an optional input that is absent
  Tensor input(std::size_t i) const;
  template <class T>
  const T* input_data(std::size_t i) const {  // where the shape is known
    return input(i).data<T>();
  }

  // Memory of output i; null for an optional output that nobody reads.
  template <class T>
  T* output(std::size_t i, const Shape& shape) const {
    return static_cast<T*>(raw_output(i, shape));
  }

  // work(i) for i = 0..count-1 on the session's threads, in any order. work must not throw.
  template <class Work>
  void parallel(std::size_t count, Work&& work) const {
    static_assert(std::is_nothrow_invocable_v<Work&, std::size_t>, "work(i) must be noexcept");
    if (count == 1) return work(0);
    using Plain = std::remove_reference_t<Work>;
    run_parallel(
        count, [](void* data, std::size_t i) { (*static_cast<Plain*>(data))(i); },
        const_cast<void*>(static_cast<const void*>(&work)));
  }

 private:
  void* raw_output(std::size_t i, const Shape& shape) const;
  void run_parallel(std::size_t count, void (*work)(void*, std::size_t), void* data) const;

  const OrtApi* api_;
  OrtKernelContext* context_;
};

// Several threads may be in compute at once: what it writes to must not be the kernel's.
class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual void compute(const Call& call) const = 0;
};

struct Declaration {
  const char* name;
  std::vector<Operand> inputs;
  std::vector<Operand> outputs;
  std::unique_ptr<Kernel> (*make_kernel)(const Node&);
};

// The ops: one function for each, listed in registration.cpp.
Declaration linear();
Declaration norm_linear();
Declaration cached_attention();
Declaration bridge();
Declaration embedding();
Declaration decoder_layers();

// Throws specdec::Error (invalid_input) with the message.
[[noreturn]] void refuse(const std::string& message);

}  // namespace specdec::ops
