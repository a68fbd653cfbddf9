// What a process has one of, whatever is forked.
#pragma once

#include <atomic>

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace jointmae {

// The T of this process: made when first asked for, and never destroyed. A forked child has none of its parent's
// threads, and a mutex in its copy of a T may be locked for ever, so it leaves that behind and gets a new one.
template <typename T>
T& of_process() {
  static std::atomic<T*> one{nullptr};
  static const bool registered = [] {
#if !defined(_WIN32)
    pthread_atfork(nullptr, nullptr, [] { one = new T; });
#endif
    one = new T;
    return true;
  }();
  (void)registered;
  return *one;
}

}  // namespace jointmae
