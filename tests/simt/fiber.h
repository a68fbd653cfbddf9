// Threads that take turns: a fiber has a stack of its own and runs until it suspends itself.
#pragma once

#include <cstddef>

namespace simt {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes the fiber begin entry(argument) when it is next resumed, whatever it was doing before. `entry` must not
  // return: it suspends for good instead.
  void prepare(void (*entry)(void*), void* argument);
  // From outside of any fiber: runs this one until it suspends.
  void resume();
  // From inside of the fiber that runs: back to where it was resumed.
  static void suspend();

 private:
  static void begin();

  unsigned char* memory_;       // a guard page, then the stack
  void* context_ = nullptr;     // where it stopped
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
};

}  // namespace simt
