#include "common/kept_memory.h"

#include <algorithm>
#include <iterator>
#include <mutex>
#include <new>
#include <vector>

#include "common/huge_pages.h"
#include "common/of_process.h"

namespace jointmae {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr std::align_val_t kAlignment{static_cast<std::size_t>(kHugePage)};
constexpr int64_t kStep = kKeptBytes > 0 ? kHugePage : 1;  // of sizes

int64_t round_up(int64_t num_bytes) { return (num_bytes + kStep - 1) / kStep * kStep; }

// Of the process: results may outlive everything else.
class Store {
 public:
  Store() { kept_.reserve(kKeptBytes / kHugePage); }  // so that to give back allocates nothing

  void* take(int64_t size) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto newest = std::find_if(kept_.rbegin(), kept_.rend(), [=](const Kept& it) { return it.size == size; });
    if (newest != kept_.rend()) {
      void* memory = newest->memory;
      num_bytes_ -= size;
      kept_.erase(std::next(newest).base());
      return memory;
    }
    void* memory = ::operator new(static_cast<std::size_t>(size), kAlignment, std::nothrow);
    if (!memory && !kept_.empty()) {
      make_room(kKeptBytes);
      memory = ::operator new(static_cast<std::size_t>(size), kAlignment, std::nothrow);
    }
    if (!memory) throw std::bad_alloc();
    ask_for_huge_pages(memory, size);
    return memory;
  }

  void give_back(void* memory, int64_t size) {
    if (size > kKeptBytes) return ::operator delete(memory, kAlignment);
    std::lock_guard<std::mutex> lock(mutex_);
    make_room(size);
    kept_.push_back({memory, size});
    num_bytes_ += size;
  }

  int64_t num_bytes() {
    std::lock_guard<std::mutex> lock(mutex_);
    return num_bytes_;
  }

 private:
  struct Kept {
    void* memory;
    int64_t size;
  };

  void make_room(int64_t size) {
    for (; num_bytes_ + size > kKeptBytes; kept_.erase(kept_.begin())) {
      num_bytes_ -= kept_.front().size;
      ::operator delete(kept_.front().memory, kAlignment);
    }
  }

  std::mutex mutex_;
  std::vector<Kept> kept_;  // in the order in which they were given back
  int64_t num_bytes_ = 0;
};

}  // namespace

void* take_memory(int64_t num_bytes) {
  if (num_bytes < 1 || num_bytes > INT64_MAX - kStep) throw std::bad_alloc();
  return of_process<Store>().take(round_up(num_bytes));
}

void give_back_memory(void* memory, int64_t num_bytes) { of_process<Store>().give_back(memory, round_up(num_bytes)); }

int64_t kept_bytes() { return of_process<Store>().num_bytes(); }

}  // namespace jointmae
