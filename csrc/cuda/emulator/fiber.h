// Stacks that are switched by hand: they are the threads of an emulated block.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#if !(defined(__x86_64__) && defined(__ELF__))
#define METATASNET_UCONTEXT 1
#if defined(__APPLE__) && !defined(_XOPEN_SOURCE)
#define _XOPEN_SOURCE 600
#endif
#include <ucontext.h>
#endif

namespace metatasnet::emulated {

class Fiber {
 public:
  Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Begins `body` at the next resume().
  void start(std::function<void()> body);
  // Runs until the body calls pause() or ends.
  void resume();
  // Called in the body: stops it, and returns from the resume() that started it.
  void pause();
  bool done() const { return done_; }

  void run();  // the body, on its own stack

 private:
  std::unique_ptr<char[]> stack_;
  std::function<void()> body_;
  bool done_ = true;
#if !METATASNET_UCONTEXT
  void* own_ = nullptr;  // stack pointers
  void* other_ = nullptr;
#else
  ucontext_t own_, other_;
#endif
};

}  // namespace metatasnet::emulated
