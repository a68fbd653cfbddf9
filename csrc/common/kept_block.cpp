#include "common/kept_block.h"

#include <algorithm>
#include <atomic>
#include <iterator>
#include <mutex>
#include <new>
#include <vector>

#include "common/huge_pages.h"

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace jointmae {
namespace {

constexpr int64_t kStep = int64_t{2} << 20;  // of sizes, and their alignment: a huge page
constexpr std::align_val_t kAlignment{static_cast<std::size_t>(kStep)};

int64_t round_up(int64_t num_bytes) { return (num_bytes + kStep - 1) / kStep * kStep; }

class Store {
 public:
  Store() { kept_.reserve(kKeptBytes / kStep); }

  void* take(int64_t size) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      const auto newest = std::find_if(kept_.rbegin(), kept_.rend(), [=](const Kept& it) { return it.size == size; });
      if (newest != kept_.rend()) {
        void* data = newest->data;
        num_bytes_ -= size;
        kept_.erase(std::next(newest).base());
        return data;
      }
    }
    void* data = ::operator new(static_cast<std::size_t>(size), kAlignment);
    ask_for_huge_pages(data, size);
    return data;
  }

  void give_back(void* data, int64_t size) {
    if (size > kKeptBytes) return ::operator delete(data, kAlignment);
    std::lock_guard<std::mutex> lock(mutex_);
    for (; num_bytes_ + size > kKeptBytes; kept_.erase(kept_.begin())) {
      num_bytes_ -= kept_.front().size;
      ::operator delete(kept_.front().data, kAlignment);
    }
    kept_.push_back({data, size});
    num_bytes_ += size;
  }

  int64_t num_bytes() {
    std::lock_guard<std::mutex> lock(mutex_);
    return num_bytes_;
  }

 private:
  struct Kept {
    void* data;
    int64_t size;
  };
  std::mutex mutex_;
  std::vector<Kept> kept_;  // in the order in which they were given back
  int64_t num_bytes_ = 0;
};

// Never destroyed: a result may outlive everything else. A forked child leaves its copy behind, as in parallel.cpp.
std::atomic<Store*> store{nullptr};

Store& the_store() {
  static const bool registered = [] {
#if !defined(_WIN32)
    pthread_atfork(nullptr, nullptr, [] { store = new Store; });
#endif
    store = new Store;
    return true;
  }();
  (void)registered;
  return *store;
}

}  // namespace

KeptBlock::KeptBlock(int64_t num_bytes) : num_bytes_(num_bytes), data_(the_store().take(round_up(num_bytes))) {}

KeptBlock::~KeptBlock() { the_store().give_back(data_, round_up(num_bytes_)); }

int64_t kept_bytes() { return the_store().num_bytes(); }

}  // namespace jointmae
