// The executor: which blocks live together, which fiber runs next, and who waits for whom.
#include "simt.h"

#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace simt {

Position here;
Limits limits{4, 227 << 10, 90};  // few multiprocessors: paths for large grids are taken at small sizes

namespace {

constexpr int kLanes = 32;
constexpr int64_t kGuardBytes = 64;  // on both sides of a block's shared memory
constexpr unsigned char kGarbage = 0xA5;

uint64_t order = 0;
std::mt19937_64 shuffler;

struct Block;

struct Thread {
  Block* block = nullptr;
  int index = 0;  // in the block
  bool exited = false;
  const char* waits_at = nullptr;
  uint64_t result = 0;  // of the word or barrier that it waited at
  std::unique_ptr<Fiber> fiber = std::make_unique<Fiber>();
};

// Some lanes of a warp at a word; complete when all of `mask` are there.
struct WarpMeeting {
  Word word;
  unsigned mask, arrived;
  uint64_t values[kLanes];
  int parameters[kLanes], widths[kLanes];
};

struct Warp {
  std::vector<WarpMeeting> meetings;
};

// All threads of a block, cluster or grid at a barrier.
struct BarrierMeeting {
  Barrier barrier = Barrier::block;
  int count = 0, sum = 0;
  std::vector<Thread*> waiting;
};

struct Block {
  int64_t index = 0;
  unsigned rank = 0;  // in its cluster
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  std::vector<Block*> cluster;
  int exited = 0;
  BarrierMeeting barrier;
  std::unique_ptr<unsigned char[]> memory;  // guard, shared memory, guard
};

// The launch under way.
struct Launch {
  const char* name;
  Shape shape;
  const std::function<void()>* body;
  std::vector<std::unique_ptr<Block>> blocks;  // that live together now
  std::deque<Thread*> ready;
  BarrierMeeting cluster_barrier, grid_barrier;
  Thread* current = nullptr;
  std::string error;
};
Launch* launch = nullptr;
std::vector<std::unique_ptr<Thread>> idle_threads;  // stacks are kept from launch to launch

const char* word_name(Word word) {
  static const char* const names[] = {
      "__syncwarp",        "__shfl_sync",       "__shfl_up_sync",    "__shfl_down_sync", "__shfl_xor_sync",
      "__ballot_sync",     "__any_sync",        "__all_sync",        "__match_any_sync", "__reduce_min_sync",
      "__reduce_max_sync", "__reduce_add_sync", "__reduce_and_sync", "__reduce_or_sync", "__reduce_xor_sync",
      "__reduce_min_sync", "__reduce_max_sync"};
  return names[static_cast<int>(word)];
}

const char* barrier_name(Barrier barrier) {
  static const char* const names[] = {"__syncthreads",    "__syncthreads_count", "__syncthreads_and",
                                      "__syncthreads_or", "cluster_sync",        "grid_sync"};
  return names[static_cast<int>(barrier)];
}

std::string where(const Thread& thread) {
  return "block " + std::to_string(thread.block->index) + ", thread " + std::to_string(thread.index);
}

// The launch has failed: this thread never goes on.
[[noreturn]] void fail(const std::string& what) {
  if (launch->error.empty()) launch->error = std::string(launch->name) + ": " + where(*launch->current) + ": " + what;
  Fiber::suspend();
  __builtin_trap();
}

void wait_at(const char* name) {
  launch->current->waits_at = name;
  Fiber::suspend();
}

void wake(Thread* thread, uint64_t result) {
  thread->result = result;
  thread->waits_at = nullptr;
  launch->ready.push_back(thread);
}

int source_lane(Word word, int lane, int parameter, int width) {
  const int first = lane / width * width;
  int source = lane;
  if (word == Word::shfl) source = first + (parameter & (width - 1));
  if (word == Word::shfl_up) source = lane - parameter < first ? lane : lane - parameter;
  if (word == Word::shfl_down) source = lane + parameter >= first + width ? lane : lane + parameter;
  if (word == Word::shfl_xor) source = (lane ^ parameter) >= first + width ? lane : lane ^ parameter;
  return source;
}

uint64_t reduce(Word word, const WarpMeeting& meeting) {
  bool first = true;
  unsigned result = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(meeting.mask >> lane & 1u)) continue;
    const unsigned value = static_cast<unsigned>(meeting.values[lane]);
    const int signed_value = static_cast<int>(value), signed_result = static_cast<int>(result);
    if (first) {
      result = value;
    } else if (word == Word::reduce_min_unsigned) {
      result = std::min(result, value);
    } else if (word == Word::reduce_max_unsigned) {
      result = std::max(result, value);
    } else if (word == Word::reduce_min_int) {
      result = static_cast<unsigned>(std::min(signed_result, signed_value));
    } else if (word == Word::reduce_max_int) {
      result = static_cast<unsigned>(std::max(signed_result, signed_value));
    } else if (word == Word::reduce_add) {
      result += value;
    } else if (word == Word::reduce_and) {
      result &= value;
    } else if (word == Word::reduce_or) {
      result |= value;
    } else {
      result ^= value;
    }
    first = false;
  }
  return result;
}

uint64_t result_of(const WarpMeeting& meeting, int lane) {
  unsigned set = 0, equal = 0;
  for (int other = 0; other < kLanes; ++other) {
    if (!(meeting.mask >> other & 1u)) continue;
    if (meeting.values[other] != 0) set |= 1u << other;
    if (meeting.values[other] == meeting.values[lane]) equal |= 1u << other;
  }
  switch (meeting.word) {
    case Word::syncwarp:
      return 0;
    case Word::ballot:
      return set;
    case Word::any:
      return set != 0;
    case Word::all:
      return set == meeting.mask;
    case Word::match_any:
      return equal;
    case Word::shfl:
    case Word::shfl_up:
    case Word::shfl_down:
    case Word::shfl_xor: {
      const int source = source_lane(meeting.word, lane, meeting.parameters[lane], meeting.widths[lane]);
      // The value of a lane that takes no part is undefined: garbage, so that a kernel which uses it goes wrong.
      return meeting.mask >> source & 1u ? meeting.values[source] : 0xA5A5A5A5DEADBEEFu;
    }
    default:
      return reduce(meeting.word, meeting);
  }
}

void complete(Warp& warp, std::size_t at) {
  const WarpMeeting meeting = warp.meetings[at];
  warp.meetings.erase(warp.meetings.begin() + static_cast<std::ptrdiff_t>(at));
  Thread* self = launch->current;
  const int first = self->index / kLanes * kLanes;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (meeting.mask >> lane & 1u) {
      Thread* thread = self->block->threads[static_cast<std::size_t>(first + lane)].get();
      wake(thread, result_of(meeting, lane));
    }
  }
}

BarrierMeeting& meeting_of(Barrier barrier, Thread& self) {
  if (barrier == Barrier::cluster) return launch->cluster_barrier;
  if (barrier == Barrier::grid) return launch->grid_barrier;
  return self.block->barrier;
}

int64_t expected_at(Barrier barrier, const Thread& self) {
  const int64_t threads = launch->shape.threads;
  if (barrier == Barrier::cluster || barrier == Barrier::grid) {
    return threads * static_cast<int64_t>(launch->blocks.size());
  }
  return static_cast<int64_t>(self.block->threads.size());
}

void thread_main(void* argument) {
  auto* self = static_cast<Thread*>(argument);
  (*launch->body)();
  self->exited = true;
  ++self->block->exited;
  Fiber::suspend();
}

std::unique_ptr<Thread> take_thread() {
  if (idle_threads.empty()) return std::make_unique<Thread>();
  std::unique_ptr<Thread> thread = std::move(idle_threads.back());
  idle_threads.pop_back();
  return thread;
}

std::unique_ptr<Block> make_block(int64_t index, const Shape& shape) {
  auto block = std::make_unique<Block>();
  block->index = index;
  block->rank = static_cast<unsigned>(index % shape.cluster_size);
  const std::size_t bytes = static_cast<std::size_t>(shape.shared_bytes + 2 * kGuardBytes);
  block->memory.reset(new unsigned char[bytes]);
  std::fill_n(block->memory.get(), bytes, kGarbage);
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(block->memory.get(), kGuardBytes);
  __asan_poison_memory_region(block->memory.get() + kGuardBytes + shape.shared_bytes, kGuardBytes);
#endif
  block->warps.resize(static_cast<std::size_t>(shape.threads / kLanes));
  for (int i = 0; i < shape.threads; ++i) {
    std::unique_ptr<Thread> thread = take_thread();
    thread->block = block.get();
    thread->index = i;
    thread->exited = false;
    thread->waits_at = nullptr;
    thread->fiber->prepare(thread_main, thread.get());
    launch->ready.push_back(thread.get());
    block->threads.push_back(std::move(thread));
  }
  return block;
}

void check_guards(const Block& block) {
  const unsigned char* memory = block.memory.get();
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(memory, static_cast<std::size_t>(launch->shape.shared_bytes + 2 * kGuardBytes));
#endif
  for (int64_t i = 0; i < kGuardBytes; ++i) {
    if (memory[i] != kGarbage || memory[kGuardBytes + launch->shape.shared_bytes + i] != kGarbage) {
      launch->error = std::string(launch->name) + ": block " + std::to_string(block.index) + ": wrote outside of its " +
                      std::to_string(launch->shape.shared_bytes) + " bytes of shared memory";
    }
  }
}

Thread* choose() {
  std::deque<Thread*>& ready = launch->ready;
  if (order > 1) std::swap(ready.front(), ready[shuffler() % ready.size()]);
  Thread* thread = order == 1 ? ready.back() : ready.front();
  order == 1 ? ready.pop_back() : ready.pop_front();
  return thread;
}

std::string deadlock() {
  std::string text = std::string(launch->name) + ": threads wait for ever:";
  int shown = 0;
  for (const auto& block : launch->blocks) {
    for (const auto& thread : block->threads) {
      if (thread->exited || shown == 4) continue;
      text += (shown++ ? "; " : " ") + where(*thread) + " at " + (thread->waits_at ? thread->waits_at : "nothing");
    }
    if (block->exited > 0 && block->exited < static_cast<int>(block->threads.size())) {
      text +=
          "; " + std::to_string(block->exited) + " threads of block " + std::to_string(block->index) + " have exited";
    }
  }
  return text;
}

// Blocks first .. first + count live together; runs them to their end.
void run_together(int64_t first, int64_t count) {
  launch->cluster_barrier = {};
  launch->grid_barrier = {};
  for (int64_t i = 0; i < count; ++i) launch->blocks.push_back(make_block(first + i, launch->shape));
  while (launch->error.empty() && !launch->ready.empty()) {
    Thread* thread = choose();
    launch->current = thread;
    here.thread.x = static_cast<unsigned>(thread->index);
    here.block.x = static_cast<unsigned>(thread->block->index);
    thread->fiber->resume();
  }
  for (const auto& block : launch->blocks) {
    if (launch->error.empty() && block->exited < static_cast<int>(block->threads.size())) launch->error = deadlock();
    check_guards(*block);
    for (auto& thread : block->threads) idle_threads.push_back(std::move(thread));
  }
  launch->blocks.clear();
  launch->ready.clear();
}

void check_shape(const char* name, const Shape& shape) {
  const auto refuse = [&](const std::string& what) { throw std::runtime_error(std::string(name) + ": " + what); };
  if (shape.num_blocks < 0 || shape.num_blocks >= int64_t{1} << 31) refuse("more blocks than a grid has");
  if (shape.threads < kLanes || shape.threads > 1024 || shape.threads % kLanes != 0) {
    refuse("threads must be a multiple of 32 up to 1024, got " + std::to_string(shape.threads));
  }
  if (shape.shared_bytes < 0 || shape.shared_bytes > limits.max_shared_bytes) {
    refuse("asks for " + std::to_string(shape.shared_bytes) + " bytes of shared memory, a block has " +
           std::to_string(limits.max_shared_bytes));
  }
  if (shape.cluster_size > 1 && limits.capability < 90) refuse("clusters need capability 90");
  if (shape.cluster_size < 1 || shape.cluster_size > 16 || shape.num_blocks % shape.cluster_size != 0) {
    refuse("the cluster's size must divide the number of blocks and be at most 16");
  }
  if (shape.all_blocks_at_once && shape.num_blocks > limits.num_sms) {
    refuse("a cooperative launch of more blocks than fit at once");
  }
}

}  // namespace

uint64_t meet_in_warp(Word word, unsigned mask, uint64_t value, int parameter, int width) {
  Thread* self = launch->current;
  const int lane = self->index % kLanes, first = self->index - lane;
  if (!(mask >> lane & 1u)) fail(std::string(word_name(word)) + " with a mask that lacks the calling lane");
  for (int other = 0; other < kLanes; ++other) {
    if (mask >> other & 1u && self->block->threads[static_cast<std::size_t>(first + other)]->exited) {
      fail(std::string(word_name(word)) + " waits for lane " + std::to_string(other) + ", which has exited");
    }
  }
  Warp& warp = self->block->warps[static_cast<std::size_t>(self->index / kLanes)];
  std::size_t at = 0;
  while (at < warp.meetings.size() && !(warp.meetings[at].mask & mask)) ++at;
  if (at == warp.meetings.size()) warp.meetings.push_back({word, mask, 0, {}, {}, {}});
  WarpMeeting& meeting = warp.meetings[at];
  if (meeting.mask != mask) fail(std::string(word_name(word)) + " with another mask than lanes that wait already");
  if (meeting.word != word) {
    fail(std::string(word_name(word)) + " where other lanes of the warp are at " + word_name(meeting.word));
  }
  meeting.arrived |= 1u << lane;
  meeting.values[lane] = value;
  meeting.parameters[lane] = parameter;
  meeting.widths[lane] = width;
  if (meeting.arrived == mask) complete(warp, at);
  wait_at(word_name(word));
  return self->result;
}

int meet_at(Barrier barrier, int predicate) {
  Thread* self = launch->current;
  if (barrier == Barrier::grid && !launch->shape.all_blocks_at_once)
    fail("grid_sync in a launch that is not cooperative");
  BarrierMeeting& meeting = meeting_of(barrier, *self);
  if (meeting.waiting.empty()) meeting = {barrier, 0, 0, {}};
  if (meeting.barrier != barrier) {
    fail(std::string(barrier_name(barrier)) + " where other threads are at " + barrier_name(meeting.barrier));
  }
  meeting.sum += predicate;
  meeting.waiting.push_back(self);
  const int64_t expected = expected_at(barrier, *self);
  if (static_cast<int64_t>(meeting.waiting.size()) == expected) {
    uint64_t result = static_cast<uint64_t>(meeting.sum);
    if (barrier == Barrier::block_and) result = meeting.sum == expected;
    if (barrier == Barrier::block_or) result = meeting.sum > 0;
    const std::vector<Thread*> waiting = std::move(meeting.waiting);
    meeting = {};
    for (Thread* thread : waiting) wake(thread, result);
  }
  wait_at(barrier_name(barrier));
  return static_cast<int>(self->result);
}

void maybe_yield() {
  if (order <= 1 || shuffler() % 8 != 0) return;
  launch->ready.push_back(launch->current);
  Fiber::suspend();
}

unsigned char* shared_memory() { return launch->current->block->memory.get() + kGuardBytes; }

unsigned cluster_rank() { return launch->current->block->rank; }

unsigned char* cluster_shared(unsigned char* mine, unsigned rank) {
  Block* block = launch->current->block;
  const int64_t offset = mine - shared_memory();
  if (offset < 0 || offset >= launch->shape.shared_bytes) fail("cluster_shared of what is not shared memory");
  if (rank >= launch->blocks.size()) fail("cluster_shared of rank " + std::to_string(rank) + ", which is not there");
  Block* other = launch->blocks[rank].get();
  if (other != block && other->exited > 0) fail("cluster_shared of a block whose threads have begun to exit");
  return other->memory.get() + kGuardBytes + offset;
}

void set_order(uint64_t new_order) { order = new_order; }

void run(const char* name, const Shape& shape, const std::function<void()>& thread) {
  static std::mutex one_launch_at_a_time;
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  check_shape(name, shape);
  shuffler.seed(order);
  Launch now{name, shape, &thread, {}, {}, {}, {}, nullptr, {}};
  launch = &now;
  here.block_size.x = static_cast<unsigned>(shape.threads);
  here.grid_size.x = static_cast<unsigned>(shape.num_blocks);
  const int64_t together = shape.all_blocks_at_once ? shape.num_blocks : shape.cluster_size;
  std::vector<int64_t> starts;
  for (int64_t first = 0; first < shape.num_blocks; first += together) starts.push_back(first);
  if (order == 1) std::reverse(starts.begin(), starts.end());
  if (order > 1) std::shuffle(starts.begin(), starts.end(), shuffler);
  for (const int64_t first : starts) {
    if (now.error.empty()) run_together(first, together);
  }
  launch = nullptr;
  if (!now.error.empty()) throw std::runtime_error(now.error);
}

}  // namespace simt
