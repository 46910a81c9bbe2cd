#include <exception>
#include <string>
#include <vector>

#include "op.h"

#if defined(_WIN32)
#define SPECDEC_EXPORT __declspec(dllexport)
#else
#define SPECDEC_EXPORT __attribute__((visibility("default")))
#endif

namespace specdec::ops {
namespace {

constexpr const char* kDomain = "specdec";

std::vector<Declaration> declarations() {
  return {
      linear(), norm_linear(), cached_attention(), bridge(), embedding(), decoder_layers(),
  };
}

OrtStatus* failure(const OrtApi* api, const std::string& message) {
  return abi::CreateStatus::of(api)(abi::kFail, message.c_str());
}

// A kernel as the runtime holds it.
struct Instance {
  const OrtApi* api;
  const char* op;
  std::unique_ptr<Kernel> kernel;
};

// The runtime calls functions with the op they belong to. It is the one below.
struct Registered : OrtCustomOp {
  explicit Registered(Declaration&& made) : OrtCustomOp(), declaration(std::move(made)) {
    version = abi::kVersion;
    name = [](const OrtCustomOp* op) { return of(op).name; };
    execution_provider = [](const OrtCustomOp*) -> const char* { return nullptr; };
    input_count = [](const OrtCustomOp* op) { return of(op).inputs.size(); };
    input_type = [](const OrtCustomOp* op, std::size_t i) { return type(of(op).inputs[i]); };
    input_characteristic = [](const OrtCustomOp* op, std::size_t i) {
      return characteristic(of(op).inputs[i]);
    };
    input_memory_type = [](const OrtCustomOp*, std::size_t) { return 0; };
    output_count = [](const OrtCustomOp* op) { return of(op).outputs.size(); };
    output_type = [](const OrtCustomOp* op, std::size_t i) { return type(of(op).outputs[i]); };
    output_characteristic = [](const OrtCustomOp* op, std::size_t i) {
      return characteristic(of(op).outputs[i]);
    };
    variadic_input_min_arity = variadic_output_min_arity = [](const OrtCustomOp*) { return 1; };
    variadic_input_homogeneity = variadic_output_homogeneity = [](const OrtCustomOp*) { return 0; };
    start_version = [](const OrtCustomOp*) { return 1; };
    end_version = [](const OrtCustomOp*) { return 1; };
    create_kernel_v2 = make;
    compute_v2 = run;
    destroy = [](void* kernel) { delete static_cast<Instance*>(kernel); };
  }

  static const Declaration& of(const OrtCustomOp* op) {
    return static_cast<const Registered*>(op)->declaration;
  }
  static int type(const Operand& operand) { return static_cast<int>(operand.type); }
  static int characteristic(const Operand& operand) {
    return static_cast<int>(operand.presence);
  }

  static OrtStatus* make(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info,
                         void** kernel) {
    const Declaration& declared = of(op);
    try {
      *kernel = new Instance{api, declared.name, declared.make_kernel(Node(api, info))};
      return nullptr;
    } catch (const std::exception& error) {
      return failure(api, std::string(declared.name) + ": " + error.what());
    }
  }

  static OrtStatus* run(void* kernel, OrtKernelContext* context) {
    const auto& instance = *static_cast<const Instance*>(kernel);
    try {
      instance.kernel->compute(Call(instance.api, context));
      return nullptr;
    } catch (const std::exception& error) {
      return failure(instance.api, std::string(instance.op) + ": " + error.what());
    }
  }

  const Declaration declaration;
};

// The ops of this library and their domain. Sessions refer to both and never say when they end.
class Domain {
 public:
  explicit Domain(const OrtApi* api) : api_(api) {
    for (Declaration& declaration : declarations()) {
      ops_.push_back(std::make_unique<const Registered>(std::move(declaration)));
    }
    take(abi::CreateCustomOpDomain::of(api)(kDomain, &domain_));
    for (const auto& op : ops_) take(abi::CustomOpDomainAdd::of(api)(domain_, op.get()));
  }

  OrtStatus* add_to(OrtSessionOptions* options, const OrtApi* api) const {
    if (api != api_) return failure(api, "specdec: two copies of ONNX Runtime in one process");
    if (failed_) return failure(api, "specdec: ONNX Runtime does not take its ops");
    return abi::AddCustomOpDomain::of(api)(options, domain_);
  }

 private:
  void take(OrtStatus* status) {
    if (status == nullptr) return;
    abi::ReleaseStatus::of(api_)(status);
    failed_ = true;
  }

  const OrtApi* api_;
  OrtCustomOpDomain* domain_ = nullptr;  // never released, as its ops
  bool failed_ = false;
  std::vector<std::unique_ptr<const Registered>> ops_;
};

}  // namespace
}  // namespace specdec::ops

// What SessionOptions.register_custom_ops_library looks for.
extern "C" SPECDEC_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                       const OrtApiBase* base) {
  using specdec::ops::Domain;
  const OrtApi* api = base->get_api(specdec::ops::abi::kVersion);
  if (api == nullptr) {
    // The place of CreateStatus is that of every version.
    return specdec::ops::failure(base->get_api(1), "specdec needs ONNX Runtime 1.17 or newer");
  }
  try {
    static const Domain* const domain = new Domain(api);  // outlives every session
    return domain->add_to(options, api);
  } catch (const std::exception& error) {
    return specdec::ops::failure(api, std::string("specdec: ") + error.what());
  }
}
