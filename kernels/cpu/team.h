// The threads of one parallel region: they share the chunks of a stage and meet between stages.
#pragma once

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace plait {

class Team {
 public:
  // Runs work(team, thread) on every thread of one region.
  template <class Work>
  static void run(int threads, const Work& work) {
    Team team;
#pragma omp parallel num_threads(threads)
    {
      team.size_.store(omp_get_num_threads(), std::memory_order_relaxed);
      work(team, omp_get_thread_num());
    }
  }

  int size() const { return size_.load(std::memory_order_relaxed); }

  // Takes the next chunk of 0 .. total - 1 of this stage, false when none is left. Chunks shrink
  // towards the end: long runs are read as one stream, and a thread that was put off the processor
  // holds up the others by little. No chunk is longer than `most`.
  bool claim(int total, int most, int* begin, int* end) {
    int at = next_.load(std::memory_order_relaxed);
    int take;
    do {
      if (at >= total) return false;
      take = std::clamp((total - at) / (2 * size()), 1, most);
    } while (!next_.compare_exchange_weak(at, at + take, std::memory_order_relaxed));
    *begin = at;
    *end = at + take;
    return true;
  }

  // Ends a stage: what any thread wrote before is seen by all after.
  void meet() {
    const int phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size()) {
      arrived_.store(0, std::memory_order_relaxed);
      next_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spin = 0; phase_.load(std::memory_order_acquire) == phase; ++spin) {
      if (spin < kSpins) {
        relax();
      } else {
        sched_yield();  // other processes share these cores
      }
    }
  }

 private:
  static constexpr int kSpins = 2000;  // some 30 us, far above the length of a stage's tail

  static void relax() {
#if defined(__x86_64__)
    _mm_pause();
#endif
  }

  alignas(64) std::atomic<int> next_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> phase_{0};
  std::atomic<int> size_{1};
};

}  // namespace plait
