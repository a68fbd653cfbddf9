// Parallel over clouds. The steps of one cloud wait for each other, so a thread takes those of two clouds in turn, and
// the arithmetic of one fills the waits of the other.
#include "common/parallel.h"
#include "farthest_point_sample/boxed_sampler.h"
#include "farthest_point_sample/farthest_point_sample.h"
#include "farthest_point_sample/flat_sampler.h"

namespace jointmae {
namespace {

// Measured: to build boxes costs as much as to look at all points 64 times, a step with boxes as much as one that looks
// at 800 points.
constexpr int64_t kBuildInSteps = 64, kBoxedStepInPoints = 800;
constexpr int64_t kInTurn = 2;
constexpr int64_t kRangesPerThread = 8;  // a range takes its memory once; few leave a thread waiting for the last

template <Isa isa, typename T>
struct Clouds {
  const T* points;         // [B, N, 3]
  const int64_t* lengths;  // [B] or null
  int64_t* indices;        // [B, M]
  int64_t N, M, start;

  int64_t length(int64_t b) const { return lengths ? lengths[b] : N; }
};

// Clouds first..first+count-1, at most kInTurn; `samplers` are FlatSampler or BoxedSampler.
template <Isa isa, typename T, typename Sampler>
void sample_in_turn(const Clouds<isa, T>& clouds, int64_t first, int64_t count, Sampler* samplers, int num_threads) {
  int64_t* indices = clouds.indices + first * clouds.M;
  const int64_t M = clouds.M;
  for (int64_t c = 0; c < count; ++c) {
    samplers[c].fill(clouds.points + (first + c) * clouds.N * 3, clouds.length(first + c), num_threads);
    indices[c * M] = clouds.start;
  }
  for (int64_t m = 1; m < M; ++m) {
    for (int64_t c = 0; c < count; ++c) samplers[c].add(indices[c * M + m - 1]);
    for (int64_t c = 0; c < count; ++c) indices[c * M + m] = samplers[c].farthest();
  }
}

// How many clouds a thread takes at once, of as many as there are for each.
inline int64_t range_size(int64_t per_thread) {
  return per_thread <= kInTurn ? per_thread : kInTurn * (1 + (per_thread - 1) / (kInTurn * kRangesPerThread));
}

template <template <Isa, typename> typename Sampler, Isa isa, typename T>
void sample_clouds(const Clouds<isa, T>& clouds, int64_t B, int num_threads) {
  const int64_t per_thread = (B + num_threads - 1) / num_threads;
  const int threads_in_cloud = B < num_threads ? num_threads : 1;
  parallel_for(B, range_size(per_thread), num_threads, [=](int64_t begin, int64_t end) {
    Sampler<isa, T> samplers[kInTurn] = {Sampler<isa, T>(clouds.N), Sampler<isa, T>(end - begin > 1 ? clouds.N : 1)};
    for (int64_t b = begin; b < end; b += kInTurn) {
      sample_in_turn(clouds, b, end - b < kInTurn ? end - b : kInTurn, samplers, threads_in_cloud);
    }
  });
}

inline bool boxes_pay(int64_t N, int64_t M) { return N * M > kBuildInSteps * N + kBoxedStepInPoints * M; }

}  // namespace

template <Isa isa, typename T>
void farthest_point_sample_cpu(const T* points, const int64_t* lengths, int64_t* indices, int64_t B, int64_t N,
                               int64_t M, int64_t start, SamplingPath path, int num_threads) {
  const Clouds<isa, T> clouds{points, lengths, indices, N, M, start};
  if (path == SamplingPath::boxes || (path == SamplingPath::by_size && boxes_pay(N, M))) {
    sample_clouds<BoxedSampler>(clouds, B, num_threads);
  } else {
    sample_clouds<FlatSampler>(clouds, B, num_threads);
  }
}

template void farthest_point_sample_cpu<kIsa, float>(const float*, const int64_t*, int64_t*, int64_t, int64_t, int64_t,
                                                     int64_t, SamplingPath, int);
template void farthest_point_sample_cpu<kIsa, double>(const double*, const int64_t*, int64_t*, int64_t, int64_t,
                                                      int64_t, int64_t, SamplingPath, int);

}  // namespace jointmae
