#pragma once

#include <cstddef>
#include <cstdint>

namespace specdec {

// One row over the `size` tokens of a head; ids as in Distribution.
struct LogitRow {
  float* logits;  // [size]; null where the model gave no more than `best`
  std::int32_t size;
  const std::int32_t* ids;
  std::int32_t best = -1;  // index of the greatest logit, where logits is null
};

// What a step gives of its rows, valid until the decoder's next one.
struct LogitRows {
  float* data;               // [rows, columns]; null where there is `best`
  const std::int32_t* best;  // [rows], index of each row's greatest logit; null where there is data
  std::int32_t rows;
  std::int32_t columns;     // size of the head
  const std::int32_t* ids;  // [columns], the vocabulary's id of each logit; null: logit i is id i

  LogitRow row(std::int32_t i) const {
    if (data == nullptr) return {nullptr, columns, ids, best[i]};
    return {data + static_cast<std::size_t>(i) * static_cast<std::size_t>(columns), columns, ids};
  }
};

// What is asked of the rows of a step. `best` is enough for a greedy choice that nothing alters; a
// decoder that cannot give it alone gives the logits.
enum class Wanted { logits, best };

}  // namespace specdec
