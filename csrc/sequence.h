#pragma once

#include <cstdint>
#include <vector>

namespace specdec {

// The committed tokens, prompt and text: the one source of truth. Everything else that knows of
// tokens (KV caches, drafters, penalties) can be rebuilt from it.
class Sequence {
 public:
  void start(std::vector<std::int32_t> prompt) {
    tokens_ = std::move(prompt);
    prompt_length_ = length();
  }
  void append(std::int32_t token) { tokens_.push_back(token); }

  const std::vector<std::int32_t>& tokens() const { return tokens_; }
  std::int32_t length() const { return static_cast<std::int32_t>(tokens_.size()); }
  std::int32_t prompt_length() const { return prompt_length_; }
  std::int32_t generated() const { return length() - prompt_length_; }
  std::int32_t last() const { return tokens_.back(); }

 private:
  std::vector<std::int32_t> tokens_;
  std::int32_t prompt_length_ = 0;
};

}  // namespace specdec
