#include "attention_plan.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "../error.h"

namespace specdec::ops {
namespace {

[[noreturn]] void refuse(std::int32_t row, const std::string& what) {
  throw Error(ErrorCode::invalid_input, "rows: row " + std::to_string(row) + " " + what);
}

}  // namespace

void AttentionPlan::lay_out(const AttentionShape& shape, const std::int32_t* rows) {
  const std::int32_t n = shape.rows;
  const std::int32_t* sequences = rows;
  const std::int32_t* lengths = sequences + n;
  const std::int32_t* columns = lengths + n;
  const std::int32_t* parents = columns + n;
  rows_.resize(static_cast<std::size_t>(n));
  columns_.clear();
  for (std::int32_t i = 0; i < n; ++i) {
    const std::int32_t length = lengths[i];
    const std::int32_t parent = parents[i];
    if (sequences[i] < 0 || sequences[i] >= shape.sequences) {
      refuse(i, "belongs to sequence " + std::to_string(sequences[i]) + ", the cache holds " +
                    std::to_string(shape.sequences));
    }
    if (length < 0 || columns[i] < length || columns[i] >= shape.capacity) {
      refuse(i, "writes column " + std::to_string(columns[i]) + ", which is not between the " +
                    std::to_string(length) + " committed columns and the capacity of " +
                    std::to_string(shape.capacity));
    }
    if (parent < -1 || parent >= i) {
      refuse(i, "has the parent " + std::to_string(parent) + ", which is no row before it");
    }
    if (parent >= 0 && (sequences[parent] != sequences[i] || lengths[parent] != length)) {
      refuse(i, "has the parent " + std::to_string(parent) +
                    ", whose sequence or committed length is another");
    }
    PlannedRow& row = rows_[static_cast<std::size_t>(i)];
    row.sequence = sequences[i];
    row.column = columns[i];
    std::int32_t before = length;  // logical index of this row
    std::int32_t contiguous = length;
    if (parent >= 0) {
      before = rows_[static_cast<std::size_t>(parent)].visible;
      contiguous = rows_[static_cast<std::size_t>(parent)].contiguous;
    }
    if (before >= shape.positions) {
      refuse(i, "is at position " + std::to_string(before) + ", the rotary tables end at " +
                    std::to_string(shape.positions));
    }
    row.visible = before + 1;
    row.contiguous = contiguous == before && columns[i] == before ? before + 1 : contiguous;
    row.tail = static_cast<std::int32_t>(columns_.size());
    columns_.resize(columns_.size() + static_cast<std::size_t>(row.visible - row.contiguous));
    std::int32_t ancestor = i;
    for (std::int32_t logical = before; logical >= row.contiguous; --logical) {
      columns_[static_cast<std::size_t>(row.tail + logical - row.contiguous)] = columns[ancestor];
      ancestor = parents[ancestor];
    }
  }
  order_.resize(static_cast<std::size_t>(n));
  std::iota(order_.begin(), order_.end(), 0);
  const auto sequence = [sequences](std::int32_t a, std::int32_t b) {
    return sequences[a] < sequences[b];
  };
  if (!std::is_sorted(order_.begin(), order_.end(), sequence)) {
    std::stable_sort(order_.begin(), order_.end(), sequence);
  }
  check_columns(shape);
}

// Two rows at one column would read each other's keys.
void AttentionPlan::check_columns(const AttentionShape& shape) {
  const auto place = [&](std::int32_t index) {
    return std::int64_t{row(index).sequence} * shape.capacity + row(index).column;
  };
  const auto ahead = [&](std::int32_t a, std::int32_t b) { return place(a) < place(b); };
  const auto not_ahead = [&](std::int32_t a, std::int32_t b) { return !ahead(a, b); };
  if (std::adjacent_find(order_.begin(), order_.end(), not_ahead) == order_.end()) return;
  by_column_ = order_;
  std::sort(by_column_.begin(), by_column_.end(), ahead);
  const auto twice = std::adjacent_find(by_column_.begin(), by_column_.end(), not_ahead);
  if (twice == by_column_.end()) return;
  refuse(std::max(twice[0], twice[1]), "writes column " + std::to_string(row(*twice).column) +
                                           ", as row " +
                                           std::to_string(std::min(twice[0], twice[1])) + " does");
}

}  // namespace specdec::ops
