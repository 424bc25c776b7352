#include "cpu/team.h"

#include <algorithm>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#include <unistd.h>
#define METATASNET_HAS_DLSYM 1
#endif

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

namespace {

#if defined(METATASNET_HAS_DLSYM)
const pid_t loaded_by = getpid();
#endif

// The OpenMP runtime that PyTorch has loaded, if it has one. Its threads wait for PyTorch's next operation in a loop for
// milliseconds, and threads of our own would have to share the cores with them.
struct OpenMp {
  using Body = void (*)(void*);
  void (*parallel)(Body body, void* data, unsigned threads, unsigned flags) = nullptr;
  int (*thread)() = nullptr;
  int (*threads)() = nullptr;

  // Source: GCC, libgomp/parallel.c; LLVM's and Intel's runtimes export the same functions.
  static OpenMp find() {
    OpenMp found;
#if defined(METATASNET_HAS_DLSYM)
    const auto symbol = [](const char* name) { return dlsym(RTLD_DEFAULT, name); };
    found.thread = reinterpret_cast<int (*)()>(symbol("omp_get_thread_num"));
    found.threads = reinterpret_cast<int (*)()>(symbol("omp_get_num_threads"));
    if (found.thread && found.threads)
      found.parallel = reinterpret_cast<decltype(found.parallel)>(symbol("GOMP_parallel"));
    if (getpid() != loaded_by) found.parallel = nullptr;  // a forked process does not have the runtime's threads
#endif
    return found;
  }
};

// The start of a team and the first error of its members, which they share.
class TeamStart {
 public:
  explicit TeamStart(const std::function<void(int)>& body) : body_(body) {}

  // Wait for the start, then run a member's part.
  void join(int index) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      condition_.wait(lock, [&] { return state_ != waiting; });
      if (state_ == cancelled) return;
    }
    guarded(index);
  }

  // Prepare for a team of so many members, start it, and run the first one's part.
  void lead(const std::function<void(int)>& prepare, int members) {
    try {
      prepare(members);
    } catch (...) {
      fail();
      release(cancelled);
      return;
    }
    release(running);
    guarded(0);
  }

  void rethrow() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  enum State { waiting, running, cancelled };

  void guarded(int index) {
    try {
      body_(index);
    } catch (...) {
      fail();
    }
  }

  void fail() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!failure_) failure_ = std::current_exception();
  }

  void release(State to) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      state_ = to;
    }
    condition_.notify_all();
  }

  const std::function<void(int)>& body_;
  std::mutex mutex_;
  std::condition_variable condition_;
  State state_ = waiting;
  std::exception_ptr failure_;
};

void run_threads(TeamStart& start, int threads, const std::function<void(int)>& prepare) {
  std::vector<std::thread> workers;
  workers.reserve(static_cast<std::size_t>(threads - 1));
  for (int index = 1; index < threads; ++index) {
    try {
      workers.emplace_back([&start, index] { start.join(index); });
    } catch (const std::system_error&) {
      break;  // the work is divided among the threads that could be started
    }
  }
  start.lead(prepare, static_cast<int>(workers.size()) + 1);
  for (std::thread& worker : workers) worker.join();
}

}  // namespace

void run_team(int threads, const std::function<void(int)>& prepare, const std::function<void(int)>& body) {
  TeamStart start(body);
  const OpenMp runtime = threads > 1 ? OpenMp::find() : OpenMp();
  if (threads <= 1) {
    start.lead(prepare, 1);
  } else if (runtime.parallel) {
    auto member = [&] {
      const int index = runtime.thread();
      if (index) {
        start.join(index);
      } else {
        start.lead(prepare, runtime.threads());
      }
    };
    using Member = decltype(member);
    runtime.parallel([](void* data) { (*static_cast<Member*>(data))(); }, &member, static_cast<unsigned>(threads), 0);
  } else {
    run_threads(start, threads, prepare);
  }
  start.rethrow();
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
