// The threads of one parallel region, which go through the same stages and share out each one.
#pragma once

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace plait {

// One thread's view of its team.
//
// Each stage gives every thread a range of the work, the same one for the same total: what a thread
// writes in one stage it mostly finds in its own cache in a later one, and claims touch memory of
// its own. Whoever is done helps the others. A stage ends when its work is done, not when all threads
// have come: while one is put off the processor, which it shares with those that serve requests, the
// others do its part. When it is back it finds the stages that it missed ended, and catches up.
class Team {
 public:
  // Runs work(team) on every thread of one region.
  template <class Work>
  static void run(int threads, const Work& work) {
    const std::unique_ptr<Range[]> ranges(new Range[threads]);
#pragma omp parallel num_threads(threads)
    {
      Team team(ranges.get(), omp_get_num_threads(), omp_get_thread_num());
      work(team);
    }
  }

  int size() const { return size_; }
  int thread() const { return thread_; }

  // Where the range of this thread begins and ends, of 0 .. total - 1.
  int first_of(int total) const { return begin_of(thread_, total); }
  int end_of(int total) const { return begin_of(thread_ + 1, total); }

  // One stage: calls work(begin, end) for chunks of 0 .. total - 1. Chunks shrink towards the end of a
  // range, so that others can help; none is longer than `most`. All threads call it with the same
  // total, of fewer than 2^20 for each thread, and see afterwards what any of them wrote. One that
  // waits calls idle() again and again, which shall be short.
  template <class Work, class Idle>
  void share(int total, int most, const Work& work, const Idle& idle) {
    if (total == 0) return;
    for (int i = 0; i < size_; ++i) work_on((thread_ + i) % size_, total, most, work);
    for (int owner = 0; owner < size_; ++owner) wait(owner, size_of(owner, total), idle);
    ++stage_;
  }

  template <class Work>
  void share(int total, int most, const Work& work) {
    share(total, most, work, [] { relax(); });
  }

  static void relax() {
#if defined(__x86_64__)
    _mm_pause();
#endif
  }

 private:
  // How far a range is in the last stage that anyone began there, in one word: the stage's number, and how
  // much of the range is taken and how much of that is done. One of an earlier stage is done, or was empty.
  class Range {
   public:
    // Takes up to `most`, and at most half of what is left; the first and how many, 0 if nothing is left.
    std::pair<int, int> take(uint32_t stage, int size, int most) {
      uint64_t seen = state_.load(std::memory_order_acquire);
      for (;;) {
        if (stage_of(seen) > stage) return {};
        const uint64_t now = stage_of(seen) == stage ? seen : uint64_t{stage} << 2 * kBits;
        const int at = static_cast<int>(now >> kBits & kMask);
        if (at >= size) return {};
        const int count = std::clamp((size - at) / 2, 1, most);
        const uint64_t next = now + (static_cast<uint64_t>(count) << kBits);
        if (state_.compare_exchange_weak(seen, next, std::memory_order_acq_rel,
                                         std::memory_order_acquire)) {
          return {at, count};
        }
      }
    }

    void finish(int count) { state_.fetch_add(count, std::memory_order_acq_rel); }

    bool is_done(uint32_t stage, int size) const {
      const uint64_t seen = state_.load(std::memory_order_acquire);
      return stage_of(seen) > stage || (stage_of(seen) == stage && (seen & kMask) == uint64_t(size));
    }

   private:
    static constexpr int kBits = 20;
    static constexpr uint64_t kMask = (uint64_t{1} << kBits) - 1;

    static uint32_t stage_of(uint64_t state) { return static_cast<uint32_t>(state >> 2 * kBits); }

    alignas(64) std::atomic<uint64_t> state_{0};
  };

  static constexpr int kSpins = 2000;  // some 30 us, far above the length of a stage's tail

  Team(Range* ranges, int size, int thread) : ranges_(ranges), size_(size), thread_(thread) {}

  int begin_of(int thread, int total) const {
    return static_cast<int>((static_cast<int64_t>(thread) * total + size_ - 1) / size_);
  }
  int size_of(int thread, int total) const {
    return begin_of(thread + 1, total) - begin_of(thread, total);
  }

  template <class Work>
  void work_on(int owner, int total, int most, const Work& work) {
    const int begin = begin_of(owner, total), size = size_of(owner, total);
    for (;;) {
      const auto [at, count] = ranges_[owner].take(stage_, size, most);
      if (count == 0) return;
      work(begin + at, begin + at + count);
      ranges_[owner].finish(count);
    }
  }

  template <class Idle>
  void wait(int owner, int size, const Idle& idle) const {
    for (int spin = 0; size > 0 && !ranges_[owner].is_done(stage_, size); ++spin) {
      if (spin < kSpins) {
        idle();
      } else {
        sched_yield();  // other processes share these cores
      }
    }
  }

  Range* ranges_;
  uint32_t stage_ = 0;
  const int size_, thread_;
};

}  // namespace plait
