// The threads of one parallel region, which go through the same stages and share out each one.
#pragma once

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace plait {

// One thread's view of its team.
//
// A stage ends when its work is done, not when all threads have come: while one is put off the
// processor, which it shares with those that serve requests, the others go on without it. When it is
// back it finds the stages that it missed ended, and catches up.
class Team {
 public:
  // Runs work(team) on every thread of one region.
  template <class Work>
  static void run(int threads, const Work& work) {
    Stage stage;
#pragma omp parallel num_threads(threads)
    {
      Team team(stage, omp_get_num_threads(), omp_get_thread_num());
      work(team);
    }
  }

  int size() const { return size_; }
  int thread() const { return thread_; }

  // The first chunk of a stage; see share.
  int first_chunk(int total, int most) const { return chunk(total, most); }

  // One stage: calls work(begin, end) for chunks of 0 .. total - 1, on whichever thread is free. Chunks
  // shrink towards the end: long runs are read as one stream, and a thread that is put off the
  // processor holds up the others by little. No chunk is longer than `most`. All threads call it with the
  // same total, and see afterwards what any of them wrote. One that waits calls idle() again and
  // again, which shall be short.
  template <class Work, class Idle>
  void share(int total, int most, const Work& work, const Idle& idle) {
    if (total == 0) return;
    uint64_t next = stage_.next.load(std::memory_order_acquire);
    while (is_now(next)) {
      const int at = static_cast<int>(static_cast<uint32_t>(next));
      if (at == total) {
        wait(idle);
        break;
      }
      const int take = chunk(total - at, most);
      if (!stage_.next.compare_exchange_weak(next, next + take, std::memory_order_acquire)) continue;
      work(at, at + take);
      if (stage_.done.fetch_add(take, std::memory_order_acq_rel) + take == total) end();
      next = stage_.next.load(std::memory_order_acquire);
    }
    ++number_;
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
  // The stage that is worked on: its number and what is to be taken next, and how much of it is done.
  struct Stage {
    alignas(64) std::atomic<uint64_t> next{0};
    alignas(64) std::atomic<int> done{0};
  };

  static constexpr int kSpins = 2000;  // some 30 us, far above the length of a stage's tail

  Team(Stage& stage, int size, int thread) : stage_(stage), size_(size), thread_(thread) {}

  bool is_now(uint64_t next) const { return next >> 32 == number_; }

  int chunk(int left, int most) const { return std::clamp(left / (2 * size_), 1, most); }

  void end() {
    stage_.done.store(0, std::memory_order_relaxed);
    stage_.next.store(static_cast<uint64_t>(number_ + 1) << 32, std::memory_order_release);
  }

  template <class Idle>
  void wait(const Idle& idle) const {
    for (int spin = 0; is_now(stage_.next.load(std::memory_order_acquire)); ++spin) {
      if (spin < kSpins) {
        idle();
      } else {
        sched_yield();  // other processes share these cores
      }
    }
  }

  Stage& stage_;
  uint32_t number_ = 0;
  const int size_, thread_;
};

}  // namespace plait
