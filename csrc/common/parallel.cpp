#include "common/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "common/of_process.h"

namespace jointmae {
namespace {

// One parallel_for under way. It lives on its caller's stack; the caller leaves only when no helper is inside.
struct Job {
  const std::function<void(int64_t, int64_t)>& body;
  const int64_t n, grain;
  std::atomic<int64_t> next{0};
  int helpers_inside = 0;  // guarded by Pool::mutex_
  std::exception_ptr error{};
  std::mutex error_mutex{};

  void run() {
    for (;;) {
      const int64_t begin = next.fetch_add(grain);
      if (begin >= n) return;
      try {
        body(begin, std::min(begin + grain, n));
      } catch (...) {
        std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) error = std::current_exception();
        next = n;  // nobody begins another range
      }
    }
  }
};

// Of the process: its threads sleep until that ends.
class Pool {
 public:
  void run(Job& job, int num_helpers) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      start_helpers(num_helpers);
      tickets_.insert(tickets_.end(), num_helpers, &job);
    }
    for (int i = 0; i < num_helpers; ++i) wake_.notify_one();
    job.run();
    std::unique_lock<std::mutex> lock(mutex_);
    tickets_.erase(std::remove(tickets_.begin(), tickets_.end(), &job), tickets_.end());  // helpers that came too late
    left_.wait(lock, [&] { return job.helpers_inside == 0; });
  }

 private:
  // Where the system grants no more threads, those that there are have to do; the caller alone is enough.
  void start_helpers(int wanted) {
    try {
      while (static_cast<int>(threads_.size()) < wanted) threads_.emplace_back([this] { help(); });
    } catch (const std::system_error&) {
      return;
    }
  }

  void help() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return !tickets_.empty(); });
      Job& job = *tickets_.front();
      tickets_.pop_front();
      ++job.helpers_inside;
      lock.unlock();
      job.run();
      lock.lock();
      if (--job.helpers_inside == 0) left_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, left_;
  std::deque<Job*> tickets_;  // one entry asks one helper into a job
  std::vector<std::thread> threads_;
};

}  // namespace

void parallel_for(int64_t n, int64_t grain, int num_threads, const std::function<void(int64_t, int64_t)>& body) {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  const int64_t num_ranges = (n + grain - 1) / grain;
  const int num_helpers = static_cast<int>(std::min<int64_t>(num_ranges, std::max(num_threads, 1))) - 1;
  Job job{body, n, grain};
  if (num_helpers == 0) {
    job.run();
  } else {
    of_process<Pool>().run(job, num_helpers);
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace jointmae
