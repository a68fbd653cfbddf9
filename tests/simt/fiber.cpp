#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {
namespace {

constexpr std::size_t kStackBytes = 64 << 10;

Fiber* running = nullptr;
void* caller = nullptr;  // the context that called resume()

// AddressSanitizer has to be told of every change of stacks.
#if defined(__SANITIZE_ADDRESS__)
void* caller_fake_stack = nullptr;
const void* caller_stack = nullptr;
std::size_t caller_stack_bytes = 0;

void leave_for_fiber(const void* stack) { __sanitizer_start_switch_fiber(&caller_fake_stack, stack, kStackBytes); }
void back_from_fiber() { __sanitizer_finish_switch_fiber(caller_fake_stack, nullptr, nullptr); }
void leave_for_caller(void** fake_stack) {
  __sanitizer_start_switch_fiber(fake_stack, caller_stack, caller_stack_bytes);
}
void enter_fiber(void* fake_stack) { __sanitizer_finish_switch_fiber(fake_stack, &caller_stack, &caller_stack_bytes); }
void forget_frames(const void* stack) { __asan_unpoison_memory_region(stack, kStackBytes); }
#else
void leave_for_fiber(const void*) {}
void back_from_fiber() {}
void leave_for_caller(void**) {}
void enter_fiber(void*) {}
void forget_frames(const void*) {}
#endif

std::size_t page_bytes() { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }

#if defined(__x86_64__)
// void simt_switch(void** from, void* to): saves what a call must keep, leaves the stack pointer in *from and goes on
// where `to` stopped.
extern "C" void simt_switch(void** from, void* to);
asm(R"(
.text
.globl simt_switch
.hidden simt_switch
.type simt_switch, @function
simt_switch:
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
.size simt_switch, . - simt_switch
)");

void* new_context(unsigned char* stack, void (*begin)()) {
  auto* top = reinterpret_cast<std::uintptr_t*>(stack + kStackBytes);
  *--top = 0;                                        // keeps the stack aligned as at a call
  *--top = reinterpret_cast<std::uintptr_t>(begin);  // where the first switch "returns" to
  for (int i = 0; i < 6; ++i) *--top = 0;            // the six registers
  return top;
}

#else
// The same by ucontext: slower, since it also keeps the signal mask.
void simt_switch(void** from, void* to) {
  ucontext_t here;
  *from = &here;
  swapcontext(&here, static_cast<ucontext_t*>(to));
}

void* new_context(unsigned char* stack, void (*begin)()) {
  auto* context = new (stack) ucontext_t;  // at the low end of the stack it describes
  getcontext(context);
  context->uc_stack.ss_sp = stack + sizeof(ucontext_t);
  context->uc_stack.ss_size = kStackBytes - sizeof(ucontext_t);
  makecontext(context, begin, 0);
  return context;
}
#endif

}  // namespace

Fiber::Fiber() {
  const std::size_t size = page_bytes() + kStackBytes;
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<unsigned char*>(memory);
  mprotect(memory_, page_bytes(), PROT_NONE);  // a stack that overflows stops here
}

Fiber::~Fiber() { munmap(memory_, page_bytes() + kStackBytes); }

void Fiber::prepare(void (*entry)(void*), void* argument) {
  entry_ = entry;
  argument_ = argument;
  fake_stack_ = nullptr;
  forget_frames(memory_ + page_bytes());  // those that were never left
  context_ = new_context(memory_ + page_bytes(), &Fiber::begin);
}

void Fiber::resume() {
  running = this;
  leave_for_fiber(memory_ + page_bytes());
  simt_switch(&caller, context_);
  back_from_fiber();
  running = nullptr;
}

void Fiber::suspend() {
  Fiber* self = running;
  leave_for_caller(&self->fake_stack_);
  simt_switch(&self->context_, caller);
  enter_fiber(self->fake_stack_);
}

void Fiber::begin() {
  enter_fiber(nullptr);
  running->entry_(running->argument_);
  __builtin_trap();
}

}  // namespace simt
