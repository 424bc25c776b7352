#include "cuda/emulator/fiber.h"

#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_UNPOISON_MEMORY_REGION(start, bytes) static_cast<void>(0)
#endif

namespace metatasnet::emulated {

namespace {
constexpr std::size_t kStack = 128 * 1024;
}

#if !METATASNET_UCONTEXT

// Saves the registers that a callee must preserve, exchanges the stack pointer, restores. ucontext would enter the
// kernel each time.
extern "C" void metatasnet_switch_stack(void** save, void* load);
asm(R"(
.text
.p2align 4
.hidden metatasnet_switch_stack
.globl metatasnet_switch_stack
.type metatasnet_switch_stack, @function
metatasnet_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size metatasnet_switch_stack, .-metatasnet_switch_stack
)");

namespace {
thread_local Fiber* starting = nullptr;

[[noreturn]] void enter() {
  starting->run();
  __builtin_unreachable();
}
}  // namespace

void Fiber::start(std::function<void()> body) {
  body_ = std::move(body);
  done_ = false;
  ASAN_UNPOISON_MEMORY_REGION(stack_.get(), kStack);  // a body that an error ended has left its frames
  // A stack in the state just after a call of enter(): six registers, the return address, and that function's own.
  auto top = (reinterpret_cast<std::uintptr_t>(stack_.get()) + kStack) & ~std::uintptr_t{15};
  auto* frame = reinterpret_cast<void**>(top) - 8;
  for (int i = 0; i < 8; ++i) frame[i] = nullptr;
  frame[6] = reinterpret_cast<void*>(&enter);
  own_ = frame;
}

void Fiber::resume() {
  starting = this;
  metatasnet_switch_stack(&other_, own_);
}

void Fiber::pause() { metatasnet_switch_stack(&own_, other_); }

#else

namespace {
void enter(unsigned low, unsigned high) {
  reinterpret_cast<Fiber*>(static_cast<std::uintptr_t>(high) << 16 << 16 | low)->run();
}
}  // namespace

void Fiber::start(std::function<void()> body) {
  body_ = std::move(body);
  done_ = false;
  ASAN_UNPOISON_MEMORY_REGION(stack_.get(), kStack);  // a body that an error ended has left its frames
  getcontext(&own_);
  own_.uc_stack.ss_sp = stack_.get();
  own_.uc_stack.ss_size = kStack;
  own_.uc_link = nullptr;
  const auto self = reinterpret_cast<std::uintptr_t>(this);
  makecontext(&own_, reinterpret_cast<void (*)()>(&enter), 2, static_cast<unsigned>(self),
              static_cast<unsigned>(self >> 16 >> 16));
}

void Fiber::resume() { swapcontext(&other_, &own_); }

void Fiber::pause() { swapcontext(&own_, &other_); }

#endif

Fiber::Fiber() : stack_(new char[kStack]) {}

void Fiber::run() {
  body_();
  done_ = true;
  pause();
}

}  // namespace metatasnet::emulated
