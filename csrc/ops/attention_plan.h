#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace specdec::ops {

// What a step of attention works on. All sizes count elements.
struct AttentionShape {
  std::int32_t rows = 0;       // S, the step's width
  std::int32_t heads = 0;      // a multiple of kv_heads
  std::int32_t kv_heads = 0;
  std::int32_t head_dim = 0;   // a multiple of 8, at most 256
  std::int32_t sequences = 0;  // B
  std::int32_t capacity = 0;   // columns of the cache, a multiple of kKeyTile
  std::int32_t positions = 0;  // P, rows of the rotary tables

  std::int32_t group() const { return heads / kv_heads; }
};

// Where a row stands: it attends to `visible` columns in logical order. Of these the first
// `contiguous` are the columns 0, 1, 2, ...; the others are listed from `tail` on.
struct PlannedRow {
  std::int32_t sequence = 0;
  std::int32_t column = 0;      // its own K/V
  std::int32_t visible = 0;     // its position + 1
  std::int32_t contiguous = 0;  // committed columns and those that follow them without a gap
  std::int32_t tail = 0;        // index into AttentionPlan::columns()
};

// The rows of one step, checked and followed to their roots. Its memory is kept from step to step.
class AttentionPlan {
 public:
  // `rows` [4, S]: sequence, committed length L of it, column, parent (the row before it on its
  // path, -1: the last committed column). Throws Error for rows that are not such.
  void lay_out(const AttentionShape& shape, const std::int32_t* rows);

  const PlannedRow& row(std::int32_t index) const {
    return rows_[static_cast<std::size_t>(index)];
  }
  // Where a row's angles begin in the rotary tables.
  std::size_t angles(std::int32_t index, std::int32_t head_dim) const {
    return static_cast<std::size_t>(row(index).visible - 1) * static_cast<std::size_t>(head_dim / 2);
  }
  const std::int32_t* tail(const PlannedRow& row) const { return columns_.data() + row.tail; }

  // Indices of the rows, those of a sequence together, otherwise as they came.
  const std::vector<std::int32_t>& order() const { return order_; }

 private:
  void check_columns(const AttentionShape& shape);

  std::vector<PlannedRow> rows_;
  std::vector<std::int32_t> columns_;
  std::vector<std::int32_t> order_;
  std::vector<std::int32_t> by_column_;
};

}  // namespace specdec::ops
