// Stages and LayersStep in many threads, without ONNX Runtime; to be run under sanitizers.

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "../../csrc/ops/layers_step.h"
#include "../../csrc/ops/weight_memory.h"

namespace {

using namespace specdec::ops;

[[noreturn]] void fail(const char* what) {
  std::printf("%s\n", what);
  std::exit(1);
}

template <class Work>
void in_threads(std::int64_t count, const Work& work) {
  std::vector<std::thread> threads;
  for (std::int64_t i = 0; i < count; ++i) threads.emplace_back(work, i);
  for (std::thread& thread : threads) thread.join();
}

// Every part once, none before all of the stages before it; `values` is no atomic, so that a missing
// order between stages is a data race.
void check_stages(std::int64_t threads, std::int64_t ranges) {
  constexpr std::int64_t kStages = 60;
  Stages stages(ranges);
  std::vector<std::int64_t> values(40, 0);
  std::int64_t expected = 0;
  const auto parts = [](std::int64_t stage) { return stage % 7 == 3 ? 0 : 1 + stage * 11 % 40; };
  in_threads(threads, [&](std::int64_t i) {
    Stages::Thread thread(stages, i % stages.ranges());
    for (std::int64_t stage = 0; stage < kStages; ++stage) {
      const std::int64_t count = parts(stage);
      thread.stage(count, [&](std::int64_t part) {
        // Reads what other threads wrote in the stages before.
        std::int64_t sum = 0;
        if (stage % 2 == 1) for (std::int64_t value : values) sum += value;
        if (stage % 2 == 0) values[static_cast<std::size_t>(part)] += stage + 1;
        if (sum < 0) fail("a sum below zero");
      });
    }
    thread.stage(0, [](std::int64_t) {});  // waits for all before
  });
  for (std::int64_t stage = 0; stage < kStages; stage += 2) expected += parts(stage) * (stage + 1);
  for (std::int64_t value : values) expected -= value;
  if (expected != 0) fail("a part ran twice, or not at all");
}

struct Weights {
  std::mt19937 random{7};
  std::vector<std::vector<std::uint8_t>> codes;
  std::vector<std::vector<std::uint16_t>> scales;
  std::vector<std::vector<float>> gains;

  Matrix matrix(int bits, std::int64_t tiles, std::int64_t blocks) {
    Matrix made{bits, blocks, tiles, nullptr, nullptr};
    codes.emplace_back(static_cast<std::size_t>(tiles * made.tile_codes()));
    for (std::uint8_t& code : codes.back()) code = static_cast<std::uint8_t>(random());
    scales.emplace_back(static_cast<std::size_t>(tiles * made.tile_scales()));
    for (std::uint16_t& half : scales.back()) half = static_cast<std::uint16_t>(0x1000 + random() % 512);
    made.codes = codes.back().data();
    made.scales = scales.back().data();
    return made;
  }

  const float* gain(std::int64_t size) {
    gains.emplace_back(static_cast<std::size_t>(size), 1.25f);
    return gains.back().data();
  }
};

// The same step in one thread and in several gives the same bits.
void check_layers(std::int64_t rows, std::int64_t threads) {
  constexpr std::int64_t kHidden = 64, kFfn = 96, kCapacity = 160, kLayers = 3;
  constexpr std::int32_t kPast = 140;
  const AttentionShape attention{static_cast<std::int32_t>(rows), 4, 2, 16, 1, 160, 160};
  LayersShape shape{kHidden, 64, 128, kFfn, 1e-5f};
  Weights weights;
  std::vector<LayerWeights> layers;
  for (std::int64_t i = 0; i < kLayers; ++i) {
    LayerWeights layer{};
    layer.attention_gain = weights.gain(kHidden);
    layer.qkv = weights.matrix(4, 8, 2);
    layer.attention_output = weights.matrix(8, 4, 2);
    layer.ffn_gain = weights.gain(kHidden);
    layer.gated = weights.matrix(4, 12, 2);
    layer.down = weights.matrix(4, 4, 3);
    if (i == 1) {
      layer.bridge = {weights.gain(kHidden), weights.gain(kHidden), weights.matrix(8, 4, 4)};
    }
    layers.push_back(layer);
  }
  const auto size = static_cast<std::size_t>(rows);
  std::vector<std::int32_t> places(4 * size);
  for (std::size_t i = 0; i < size; ++i) {
    places[size + i] = kPast;
    places[2 * size + i] = kPast + static_cast<std::int32_t>(i);
    places[3 * size + i] = static_cast<std::int32_t>(i) - 1;
  }
  const std::vector<float> angles(static_cast<std::size_t>(kCapacity) * 8, 0.7f);
  std::vector<float> residual(size * kHidden);
  for (std::size_t i = 0; i < residual.size(); ++i) residual[i] = static_cast<float>(i % 13) - 6;

  std::vector<float> first;
  LayersStep step;
  for (const std::int64_t count : {std::int64_t{1}, threads, threads, std::int64_t{1}}) {
    std::vector<std::uint16_t> memory(static_cast<std::size_t>(2 * kLayers * 2 * kCapacity * 16),
                                      0x3800);  // halves
    std::vector<LayerCache> caches;
    for (std::int64_t i = 0; i < kLayers; ++i) {
      std::uint16_t* const key = memory.data() + 2 * i * 2 * kCapacity * 16;
      caches.push_back({key, key + 2 * kCapacity * 16});
    }
    std::vector<float> out(2 * residual.size());
    LayersTensors tensors{};
    tensors.residual = tensors.features = residual.data();
    tensors.new_residual = out.data();
    tensors.new_update = out.data() + residual.size();
    tensors.rows = places.data();
    tensors.cosine = tensors.sine = angles.data();
    step.begin(shape, attention, tensors, caches.data(), plain_row_kernels(), attention_plain(), count);
    Stages stages(count);
    // More threads than ranges, and one that comes when all is done.
    in_threads(count + 1, [&](std::int64_t i) {
      Stages::Thread thread(stages, i % stages.ranges());
      step.work(layers.data(), layers.size(), thread);
    });
    Stages::Thread late(stages, 0);
    step.work(layers.data(), layers.size(), late);
    out.insert(out.end(), memory.begin(), memory.end());
    if (first.empty()) first = out;
    if (first != out) fail("other bits in several threads");
  }
}

void check_weight_memory() {
  Weights weights;
  std::vector<Matrix> matrices{weights.matrix(4, 300, 40), weights.matrix(8, 90, 40)};
  std::size_t bytes = 0;
  for (const Matrix& matrix : matrices) bytes += WeightMemory::bytes_of(matrix);
  WeightMemory memory(bytes);
  for (const Matrix& matrix : matrices) {
    const Matrix kept = memory.keep(matrix);
    for (std::int64_t i = 0; i < matrix.tiles * matrix.tile_codes(); ++i) {
      if (kept.codes[i] != matrix.codes[i]) fail("a copied code is another");
    }
    for (std::int64_t i = 0; i < matrix.tiles * matrix.tile_scales(); ++i) {
      if (kept.scales[i] != matrix.scales[i]) fail("a copied scale is another");
    }
  }
  // No room is left: it stays where it is.
  const Matrix more = weights.matrix(8, 1000, 40);
  if (memory.keep(more).codes != more.codes) fail("a matrix was copied to where there is no room");
}

}  // namespace

int main() {
  for (const std::int64_t threads : {1, 2, 5}) {
    for (const std::int64_t ranges : {1, 2, 3, 16}) check_stages(threads, ranges);
    for (const std::int64_t rows : {1, 3, 9}) check_layers(rows, threads);
  }
  check_weight_memory();
  std::printf("stages and layers are right\n");
}
