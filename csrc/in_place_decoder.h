#pragma once

#include <cstdint>

#include "aligned_buffer.h"
#include "decoder.h"
#include "kv_cache.h"

namespace specdec {

// A model whose graph takes steps of any width and writes the new K/V into the cache itself. The
// `head` of its runs is the first row that logits are computed of.
class InPlaceDecoder final : public Decoder {
 public:
  // Rows that are run beside those of the tokens; nobody looks at what comes of them.
  struct Padding {
    std::int32_t min_width = 1;  // 1, or 2: narrower steps are padded, so that rows do not depend on width
    std::int32_t row_tile = 0;  // a wider step is padded too where it would leave a last tile of one row
  };

  // What the graph has besides logits.
  struct Graph {
    std::int32_t hidden_size = 0;  // elements of the final hidden state of every row; 0: not given
    bool takes_rows = false;       // it places its rows as rows() says, and so takes trees
    bool gives_best = false;       // each row's best token, for less than its logits
  };

  InPlaceDecoder(DecoderOptions options, const Padding& padding,
                 const InPlaceKvCache::Shape& cache, const Graph& graph, Run run);

  InPlaceKvCache& cache() override { return cache_; }
  bool takes_trees() const override { return graph_.takes_rows; }
  void move_row(std::int32_t from, std::int32_t to) override;

  std::int32_t hidden_size() const { return graph_.hidden_size; }

  // The final hidden state [hidden_size] of a committed position, valid until the next step; null
  // unless the last step computed it.
  const float* hidden(std::int32_t position) const;

  // Buffers that sessions are bound to.
  AlignedBuffer<std::int64_t>& tokens() { return tokens_; }          // [max_width]
  AlignedBuffer<std::int32_t>& seqlens_k() { return seqlens_k_; }    // [1] total length - 1
  AlignedBuffer<std::int32_t>& total_length() { return total_length_; }  // scalar
  AlignedBuffer<std::int64_t>& first_logit_row() { return first_logit_row_; }  // [1]
  // [4, width of the step], contiguous for that width: of each row the sequence (0), the committed
  // length of that, the column that its K/V are for, and the row before it on its path, or -1.
  AlignedBuffer<std::int32_t>& rows() { return rows_; }
  AlignedBuffer<std::int64_t>& best_only() { return best_only_; }  // [1] 1: no logits, best() alone
  AlignedBuffer<float>& logits() { return logits_; }  // [max_logit_rows, head_size]
  AlignedBuffer<std::int32_t>& best() { return best_; }  // [max_logit_rows] index of the greatest logit
  AlignedBuffer<float>& hidden_rows() { return hidden_rows_; }  // [max_width, hidden_size]

 private:
  LogitRows step(const std::int32_t* tokens, std::int32_t n, std::int32_t logit_rows,
                 Wanted wanted, const std::int32_t* parents) override;

  void place_rows(std::int32_t n, std::int32_t width, const std::int32_t* parents);

  Padding padding_;
  InPlaceKvCache cache_;
  Graph graph_;
  std::int32_t step_tokens_ = 0;  // of the last step
  // Positions that the rows of hidden_rows_ belong to. What is committed of them is not kept: a
  // position is committed where it is below the cache's length, and no length grows past a step's.
  std::int32_t hidden_begin_ = 0;
  std::int32_t hidden_end_ = 0;
  AlignedBuffer<std::int64_t> tokens_;
  AlignedBuffer<std::int32_t> seqlens_k_;
  AlignedBuffer<std::int32_t> total_length_;
  AlignedBuffer<std::int64_t> first_logit_row_;
  AlignedBuffer<std::int32_t> rows_;
  AlignedBuffer<std::int64_t> best_only_;
  AlignedBuffer<float> logits_;
  AlignedBuffer<std::int32_t> best_;
  AlignedBuffer<float> hidden_rows_;
};

}  // namespace specdec
