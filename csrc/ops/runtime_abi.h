#pragma once

#include <cstddef>
#include <cstdint>

// What specdec's ops need of ONNX Runtime's C ABI. The runtime hands out a table of functions that
// only ever grows at its end; here are the positions and types of those that are used. Nothing is
// linked: the table comes with the call of RegisterCustomOps.

extern "C" {
struct OrtStatus;  // null where all is well
struct OrtValue;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtTensorTypeAndShapeInfo;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtApi;

struct OrtApiBase {
  const OrtApi* (*get_api)(std::uint32_t version);  // null for a version it does not know
  const char* (*get_version)();
};

struct OrtCustomOp {
  std::uint32_t version;
  void* (*create_kernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*name)(const OrtCustomOp*);
  const char* (*execution_provider)(const OrtCustomOp*);  // gives null for the CPU
  int (*input_type)(const OrtCustomOp*, std::size_t);
  std::size_t (*input_count)(const OrtCustomOp*);
  int (*output_type)(const OrtCustomOp*, std::size_t);
  std::size_t (*output_count)(const OrtCustomOp*);
  void (*compute)(void* kernel, OrtKernelContext*);
  void (*destroy)(void* kernel);
  int (*input_characteristic)(const OrtCustomOp*, std::size_t);
  int (*output_characteristic)(const OrtCustomOp*, std::size_t);
  int (*input_memory_type)(const OrtCustomOp*, std::size_t);
  int (*variadic_input_min_arity)(const OrtCustomOp*);
  int (*variadic_input_homogeneity)(const OrtCustomOp*);
  int (*variadic_output_min_arity)(const OrtCustomOp*);
  int (*variadic_output_homogeneity)(const OrtCustomOp*);
  OrtStatus* (*create_kernel_v2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*,
                                 void** kernel);
  OrtStatus* (*compute_v2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*infer_output_shape)(const OrtCustomOp*, void*);  // this and the following may be null
  int (*start_version)(const OrtCustomOp*);
  int (*end_version)(const OrtCustomOp*);
  std::size_t (*may_inplace)(int**, int**);
  void (*release_may_inplace)(int*, int*);
  std::size_t (*alias_map)(int**, int**);
  void (*release_alias_map)(int*, int*);
};
}

namespace specdec::ops::abi {

constexpr std::uint32_t kVersion = 17;  // the first that has all of this

enum Characteristic : int { kRequired = 0, kOptional = 1, kVariadic = 2 };
enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };

// A function of the table: its position and its type.
template <std::size_t kPosition, class Function>
struct Entry {
  static Function* of(const OrtApi* api) {
    return reinterpret_cast<Function* const*>(api)[kPosition];
  }
};

using CreateStatus = Entry<0, OrtStatus*(int code, const char* message)>;
using CreateCustomOpDomain = Entry<26, OrtStatus*(const char* name, OrtCustomOpDomain**)>;
using CustomOpDomainAdd = Entry<27, OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*)>;
using AddCustomOpDomain = Entry<28, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)>;
using GetTensorMutableData = Entry<51, OrtStatus*(OrtValue*, void**)>;
using GetTensorElementType = Entry<60, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int*)>;
using GetDimensionsCount = Entry<61, OrtStatus*(const OrtTensorTypeAndShapeInfo*, std::size_t*)>;
using GetDimensions =
    Entry<62, OrtStatus*(const OrtTensorTypeAndShapeInfo*, std::int64_t*, std::size_t)>;
using GetTensorTypeAndShape = Entry<65, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)>;
using KernelInfoGetFloat = Entry<85, OrtStatus*(const OrtKernelInfo*, const char*, float*)>;
using KernelInfoGetInt64 = Entry<86, OrtStatus*(const OrtKernelInfo*, const char*, std::int64_t*)>;
using KernelInfoGetString =
    Entry<87, OrtStatus*(const OrtKernelInfo*, const char*, char*, std::size_t*)>;
using KernelContextGetInputCount = Entry<88, OrtStatus*(const OrtKernelContext*, std::size_t*)>;
using KernelContextGetOutputCount = Entry<89, OrtStatus*(const OrtKernelContext*, std::size_t*)>;
using KernelContextGetInput =
    Entry<90, OrtStatus*(const OrtKernelContext*, std::size_t, const OrtValue**)>;
using KernelContextGetOutput =
    Entry<91, OrtStatus*(OrtKernelContext*, std::size_t, const std::int64_t* dims, std::size_t n,
                         OrtValue**)>;
using ReleaseStatus = Entry<93, void(OrtStatus*)>;
using ReleaseTensorTypeAndShapeInfo = Entry<99, void(OrtTensorTypeAndShapeInfo*)>;
using ReleaseCustomOpDomain = Entry<101, void(OrtCustomOpDomain*)>;
using KernelInfoGetConstantInput =
    Entry<249, OrtStatus*(const OrtKernelInfo*, std::size_t, int* constant, const OrtValue**)>;
using KernelContextParallelFor =
    Entry<274, OrtStatus*(const OrtKernelContext*, void (*)(void*, std::size_t), std::size_t total,
                          std::size_t batches, void* data)>;

}  // namespace specdec::ops::abi
