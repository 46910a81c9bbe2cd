#pragma once

#include <cstdint>
#include <vector>

#include "aligned_buffer.h"
#include "decoder.h"
#include "step_costs.h"

namespace specdec {

// What one sequence wants of a step, and where it stands in it.
struct StepPart {
  std::int32_t sequence;
  std::int32_t length;  // columns of it that are known: its rows write those that follow
  const std::int32_t* tokens;  // [n]
  std::int32_t n;
  std::int32_t logit_rows;            // of its last rows
  const std::int32_t* parents;        // [n], as in Decoder::forward(); null: a chain
  Wanted wanted = Wanted::logits;     // of those; whoever asks for logits gets them for all parts
  const float* features = nullptr;    // [n, hidden_size], for graphs that take them

  std::int32_t without_logits = 0;  // the step's row of its first one
  std::int32_t with_logits = 0;     // the step's row of its first one with logits
  double share = 0;                 // of what the step cost: all parts' add up to 1
  double seconds = 0;               // inside the run, its share of them

  std::int32_t row(std::int32_t i) const {
    const std::int32_t before = n - logit_rows;
    return i < before ? without_logits + i : with_logits + i - before;
  }
};

// The share of a step's cost for each of its parts, of which `rows` are given: what a step costs
// however few rows it has is split evenly, the rest by rows. So a sequence that weighs one more row
// against its tokens sees what the row adds for all, and the shares add up to 1.
std::vector<double> split_step(const StepCosts& costs, const std::vector<std::int32_t>& rows);

// A model whose graph is told of each row where it stands (`rows`), and the buffers that it is run
// on: one step may have rows of several sequences. A row's bits do not depend on the others.
//
// Rows without logits come first, so that logits are computed of none but those that are wanted.
class BatchModel {
 public:
  struct Sizes {
    std::int32_t max_width = 0;       // rows of a step
    std::int32_t max_logit_rows = 0;  // of a step
    std::int32_t head_size = 0;
    std::int32_t hidden_size = 0;  // elements of each row's final hidden state; 0: not given
    bool takes_features = false;   // [hidden_size] for each row
    bool gives_best = false;       // as InPlaceDecoder::Graph
  };

  BatchModel(const Sizes& sizes, Decoder::Run run);

  const Sizes& sizes() const { return sizes_; }

  const StepCosts& costs() const { return costs_; }
  void move_behind(std::int32_t length) { costs_.move_behind(length); }  // of the longest sequence

  // Whether these rows fit into one step.
  bool fits(std::int32_t rows, std::int32_t logit_rows) const {
    return rows <= sizes_.max_width && logit_rows <= sizes_.max_logit_rows;
  }

  // Runs one step, and says in the parts where their rows are.
  void run(StepPart* parts, std::int32_t count);

  // Of the last step.
  LogitRows logits_of(const StepPart& part, const std::int32_t* head_ids);
  const float* hidden(const StepPart& part, std::int32_t i) const {  // [hidden_size]
    return hidden_.data() + static_cast<std::size_t>(part.row(i)) * sizes_.hidden_size;
  }

  // Buffers that sessions are bound to.
  AlignedBuffer<std::int64_t>& tokens() { return tokens_; }                    // [max_width]
  AlignedBuffer<std::int64_t>& first_logit_row() { return first_logit_row_; }  // [1]
  AlignedBuffer<std::int32_t>& rows() { return rows_; }  // [4, width], see InPlaceDecoder::rows()
  AlignedBuffer<float>& features() { return features_; }     // [max_width, hidden_size]
  AlignedBuffer<float>& hidden_rows() { return hidden_; }    // [max_width, hidden_size]
  AlignedBuffer<std::int64_t>& best_only() { return best_only_; }  // see InPlaceDecoder
  AlignedBuffer<float>& logits() { return logits_; }         // [max_logit_rows, head_size]
  AlignedBuffer<std::int32_t>& best() { return best_; }      // [max_logit_rows]

 private:
  void place(const StepPart& part, std::int32_t width);

  Sizes sizes_;
  Decoder::Run run_;
  StepCosts costs_;
  std::int32_t first_ = 0;  // row of the last step with logits
  AlignedBuffer<std::int64_t> tokens_;
  AlignedBuffer<std::int64_t> first_logit_row_;
  AlignedBuffer<std::int32_t> rows_;
  AlignedBuffer<float> features_;
  AlignedBuffer<float> hidden_;
  AlignedBuffer<std::int64_t> best_only_;
  AlignedBuffer<float> logits_;
  AlignedBuffer<std::int32_t> best_;
};

}  // namespace specdec
