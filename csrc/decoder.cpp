#include "decoder.h"

#include <algorithm>
#include <functional>
#include <string>
#include <utility>

#include "clock.h"
#include "error.h"

namespace specdec {
namespace {

void check(const DecoderOptions& o) {
  if (o.vocabulary < 1 || o.head_size < 1 || o.head_size > o.vocabulary) {
    throw Error(ErrorCode::invalid_input, "a decoder needs 1 <= head size <= vocabulary");
  }
  if (o.max_width < 1 || o.max_logit_rows < 1 || o.first_token >= o.vocabulary) {
    throw Error(ErrorCode::invalid_input,
                "a decoder needs steps of at least one token and one row of logits, and a first "
                "token of its vocabulary");
  }
  if (o.head_ids.empty()) {
    if (o.head_size != o.vocabulary) {
      throw Error(ErrorCode::invalid_input, "a trimmed head needs the id of each of its logits");
    }
    return;
  }
  const bool ascending = std::adjacent_find(o.head_ids.begin(), o.head_ids.end(),
                                            std::greater_equal<>()) == o.head_ids.end();
  if (static_cast<std::int32_t>(o.head_ids.size()) != o.head_size || !ascending ||
      o.head_ids.front() < 0 || o.head_ids.back() >= o.vocabulary) {
    throw Error(ErrorCode::invalid_input,
                "head ids must be ascending ids of the vocabulary, one for each logit");
  }
}

}  // namespace

Decoder::Decoder(DecoderOptions options, Run run)
    : options_(std::move(options)), run_(std::move(run)) {
  check(options_);
  known_ids_.resize(static_cast<std::size_t>(options_.max_width));
}

LogitRows StepRequest::run() const {
  return decoder->forward(tokens, n, logit_rows, wanted, parents);
}

LogitRows Decoder::forward(const std::int32_t* tokens, std::int32_t n, std::int32_t logit_rows,
                           Wanted wanted, const std::int32_t* parents) {
  return step(admit(tokens, n, logit_rows, parents), n, logit_rows, wanted, parents);
}

const std::int32_t* Decoder::admit(const std::int32_t* tokens, std::int32_t n,
                                   std::int32_t logit_rows, const std::int32_t* parents) {
  if (n < 1 || n > options_.max_width || logit_rows < 0 || logit_rows > n ||
      logit_rows > options_.max_logit_rows) {
    refuse(n, logit_rows);
  }
  // A target may have ids that its drafter lacks (padding of the vocabulary). Read as id 0 they
  // cost a bad draft, never a wrong text.
  for (std::int32_t i = 0; i < n; ++i) {
    const bool known = tokens[i] >= 0 && tokens[i] < options_.vocabulary;
    known_ids_[static_cast<std::size_t>(i)] = known ? tokens[i] : 0;
  }
  if (parents != nullptr) check_parents(parents, n);
  return known_ids_.data();
}

void Decoder::check_parents(const std::int32_t* parents, std::int32_t n) const {
  bool earlier = takes_trees();
  for (std::int32_t i = 0; i < n; ++i) earlier = earlier && parents[i] >= -1 && parents[i] < i;
  if (!earlier) {
    throw Error(ErrorCode::invalid_input,
                "a step of a tree is for decoders that take trees, and every parent in it is a "
                "token before, or -1");
  }
}

void Decoder::move_row(std::int32_t, std::int32_t) {
  throw Error(ErrorCode::invalid_input, "rows are moved only in decoders that take trees");
}

void Decoder::prefill(const std::int32_t* tokens, std::int32_t n,
                      const std::function<bool()>& stop) {
  while (n > 0 && !stop()) {
    // Padding must fit as well: the last column of the context is left to the step that follows.
    const std::int32_t count = std::min(n, options_.max_width);
    forward(tokens, count, options_.least_logit_rows, Wanted::best);
    cache().commit(count);
    tokens += count;
    n -= count;
  }
}

void Decoder::run(std::int32_t width, std::int32_t head) {
  {
    Stopwatch watch(run_seconds_);
    run_(width, head);
  }
  ++runs_;
}

void Decoder::refuse(std::int32_t n, std::int32_t logit_rows) {
  throw Error(ErrorCode::invalid_input,
              "a step of " + std::to_string(n) + " tokens with " + std::to_string(logit_rows) +
                  " rows of logits is outside what this decoder was made for");
}

}  // namespace specdec
