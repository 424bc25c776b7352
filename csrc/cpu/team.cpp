#include "cpu/team.h"

#include <algorithm>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace metatasnet {

void Barrier::wait() {
  if (parties_ == 1) return;
  const std::uint32_t generation = generation_.load(std::memory_order_acquire);
  {
    std::unique_lock<std::mutex> lock(mutex_);
    if (++arrived_ == parties_) {
      arrived_ = 0;
      generation_.store(generation + 1, std::memory_order_release);
      lock.unlock();
      condition_.notify_all();
      return;
    }
  }
  // The other threads usually arrive within microseconds, so spin before asking the system to sleep.
  for (int look = 0; look < 2000; ++look) {
    if (generation_.load(std::memory_order_acquire) != generation) return;
  }
  std::unique_lock<std::mutex> lock(mutex_);
  condition_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != generation; });
}

void run_team(int threads, const std::function<void(int)>& prepare, const std::function<void(int)>& body) {
  std::mutex mutex;
  std::condition_variable condition;
  enum { waiting, running, cancelled } state = waiting;
  std::exception_ptr failure;

  const auto guarded = [&](int index) {
    try {
      body(index);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  std::vector<std::thread> workers;
  workers.reserve(static_cast<std::size_t>(std::max(threads - 1, 0)));
  for (int index = 1; index < threads; ++index) {
    try {
      workers.emplace_back([&, index] {
        {
          std::unique_lock<std::mutex> lock(mutex);
          condition.wait(lock, [&] { return state != waiting; });
          if (state == cancelled) return;
        }
        guarded(index);
      });
    } catch (const std::system_error&) {
      break;  // the work is divided among the threads that could be started
    }
  }
  const auto release = [&](auto to) {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      state = to;
    }
    condition.notify_all();
  };
  try {
    prepare(static_cast<int>(workers.size()) + 1);
  } catch (...) {
    release(cancelled);
    for (std::thread& worker : workers) worker.join();
    throw;
  }
  release(running);
  guarded(0);
  for (std::thread& worker : workers) worker.join();
  if (failure) std::rethrow_exception(failure);
}

int team_size(std::int64_t units, int threads) {
  int best = 1;
  double best_time = 0.0;
  for (int size = 1; size <= threads; ++size) {
    const std::int64_t teams = threads / size, rounds = (units + teams - 1) / teams;
    const double time = static_cast<double>(rounds) / size;
    if (size == 1 || time < best_time * 0.95) {
      best = size;
      best_time = time;
    }
  }
  return best;
}

}  // namespace metatasnet
