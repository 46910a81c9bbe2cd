#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>

namespace specdec::ops {

// Stages of work that follow each other, in one parallel section: between two of them threads wait for
// each other some hundred nanoseconds, where a section of its own would cost each some microseconds.
//
// A stage is `count` parts. They lie in ranges, one for each thread, so that a thread reads memory
// that follows on; whoever has none left helps with the others' parts. A thread waits for parts at
// work only, never for a thread, so it does not matter how many threads come, or when.
//
// Counters only ever rise, over all stages: a part's number is that within the range's parts of all
// stages so far, and a thread that comes late finds what was done before it taken.
class Stages {
 public:
  static constexpr std::int64_t kMostRanges = 16;

  explicit Stages(std::int64_t ranges)
      : ranges_(std::clamp<std::int64_t>(ranges, 1, kMostRanges)) {
    for (std::int64_t i = 0; i < ranges_; ++i) taken_[i].parts.store(0, std::memory_order_relaxed);
  }
  Stages(const Stages&) = delete;
  Stages& operator=(const Stages&) = delete;

  std::int64_t ranges() const { return ranges_; }

  // One thread's way through the stages: all threads go through the same ones.
  class Thread {
   public:
    Thread(Stages& stages, std::int64_t range) : stages_(stages), range_(range) {}

    // work(part) for those of the next stage's parts that this thread takes, once all of the stages
    // before are done; idle() again and again until then.
    template <class Idle, class Work>
    void stage(std::int64_t count, const Idle& idle, const Work& work) {
      wait(idle);
      std::int64_t range = range_;
      for (std::int64_t i = 0; i < stages_.ranges_; ++i) {
        take(count, range, work);
        range = range + 1 == stages_.ranges_ ? 0 : range + 1;
      }
      before_ += count;
    }

    template <class Work>
    void stage(std::int64_t count, const Work& work) {
      stage(count, [] {}, work);
    }

    std::int64_t range() const { return range_; }

    // The parts of a stage of `count` that are this thread's own: first to last - 1.
    std::int64_t first(std::int64_t count) const { return first(count, range_); }
    std::int64_t last(std::int64_t count) const { return first(count, range_ + 1); }

   private:
    // Until all stages so far are done.
    template <class Idle>
    void wait(const Idle& idle) const {
      constexpr int kPatience = 2000;  // some microseconds; then the core may be needed by another
      for (int i = 0; stages_.done_.load(std::memory_order_acquire) < before_; ++i) {
        if (i < kPatience) {
          idle();
        } else {
          std::this_thread::yield();
        }
      }
    }

    std::int64_t first(std::int64_t count, std::int64_t range) const {
      return count * range / stages_.ranges_;
    }

    template <class Work>
    void take(std::int64_t count, std::int64_t range, const Work& work) {
      const std::int64_t begin = first(count, range);
      const std::int64_t base = bases_[range];
      const std::int64_t end = base + first(count, range + 1) - begin;
      bases_[range] = end;
      std::atomic<std::int64_t>& taken = stages_.taken_[range].parts;
      std::int64_t part = taken.load(std::memory_order_relaxed);
      std::int64_t finished = 0;
      while (part < end) {
        if (!taken.compare_exchange_weak(part, part + 1, std::memory_order_relaxed)) continue;
        work(begin + part - base);
        ++finished;
        part = taken.load(std::memory_order_relaxed);
      }
      // Once and not for each part: all threads write here, and each time the line must come over.
      if (finished > 0) stages_.done_.fetch_add(finished, std::memory_order_release);
    }

    Stages& stages_;
    const std::int64_t range_;
    std::int64_t bases_[kMostRanges] = {};  // parts of the stages before, by range
    std::int64_t before_ = 0;      // the same, of all ranges
  };

 private:
  struct alignas(64) Taken {  // a cache line each
    std::atomic<std::int64_t> parts;
  };

  const std::int64_t ranges_;
  Taken taken_[kMostRanges];
  alignas(64) std::atomic<std::int64_t> done_{0};
};

}  // namespace specdec::ops
