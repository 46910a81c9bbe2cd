#pragma once

#include <stdexcept>
#include <string>

namespace specdec {

enum class ErrorCode {
  invalid_input,  // an argument is outside what is accepted
  context_full,   // the tokens do not fit into the KV cache
  model_run,      // a model gave logits that are no numbers
};

// The core's one error type. Messages say what was wrong, where, and what to do.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace specdec
