// Places along Hilbert's curve: cells that follow each other on it are neighbours in space, without Morton's jumps.
// After J. Skilling, "Programming the Hilbert curve" (2004), for many cells at once.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace jointmae {

template <Isa isa>
class HilbertCells {
 public:
  static constexpr int64_t kCount = 64;

  // Afterwards place(i) is that of cell (x[i], y[i], z[i]) of a grid of 2^axis_bits cells each way; at most 10 bits.
  void find_places(int axis_bits) {
    for (int bit = axis_bits - 1; bit > 0; --bit) turn(bit);
#pragma omp simd
    for (int64_t i = 0; i < kCount; ++i) {
      const uint32_t a = x[i], b = y[i] ^ a, c = z[i] ^ b, above = parity_above(c);
      places_[i] = spread(a ^ above) << 2 | spread(b ^ above) << 1 | spread(c ^ above);
    }
  }
  uint32_t place(int64_t i) const { return places_[i]; }

  uint32_t x[kCount] = {}, y[kCount] = {}, z[kCount] = {};

 private:
  // The curve within an octant is the whole one turned and mirrored, by the bits above.
  void turn(int bit) {
    const uint32_t below = (1u << bit) - 1;
#pragma omp simd
    for (int64_t i = 0; i < kCount; ++i) {
      uint32_t a = x[i], b = y[i], c = z[i];
      a ^= a >> bit & 1 ? below : 0;
      mirror_or_swap(a, b, b >> bit & 1, below);
      mirror_or_swap(a, c, c >> bit & 1, below);
      x[i] = a, y[i] = b, z[i] = c;
    }
  }
  static void mirror_or_swap(uint32_t& a, uint32_t& b, uint32_t mirror, uint32_t below) {
    const uint32_t differing = (a ^ b) & below;
    a ^= mirror ? below : differing;
    b ^= mirror ? 0 : differing;
  }

  // Of each bit, whether an odd number of those above it are set.
  static uint32_t parity_above(uint32_t bits) {
    bits >>= 1;
    bits ^= bits >> 1;
    bits ^= bits >> 2;
    bits ^= bits >> 4;
    return bits ^ bits >> 8;
  }

  // The ten low bits, each three places from the next.
  static uint32_t spread(uint32_t bits) {
    bits = (bits | bits << 16) & 0x030000FFu;
    bits = (bits | bits << 8) & 0x0300F00Fu;
    bits = (bits | bits << 4) & 0x030C30C3u;
    return (bits | bits << 2) & 0x09249249u;
  }

  uint32_t places_[kCount];
};

}  // namespace jointmae
