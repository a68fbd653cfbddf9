#include "common/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace jointmae {
namespace {

Isa best_isa() {
#if defined(JOINTMAE_X86)
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
// Older ones do not know the name; only a virtual machine has one without the other.
#if defined(__clang__) || __GNUC__ >= 11
  avx2 = avx2 && __builtin_cpu_supports("f16c");
#endif
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  if (avx2 && avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::scalar;
}

Isa choose_isa() {
  const Isa best = best_isa();
  const char* forced = std::getenv("JOINTMAE_ISA");
  if (forced == nullptr || *forced == '\0') return best;
  for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
    if (std::string(forced) != isa_name(isa)) continue;
    if (isa <= best) return isa;
    throw std::invalid_argument(std::string("JOINTMAE_ISA=") + forced + ": this processor only has " + isa_name(best));
  }
  throw std::invalid_argument(std::string("JOINTMAE_ISA must be scalar, avx2 or avx512, got '") + forced + "'");
}

}  // namespace

Isa run_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "scalar";
  }
}

}  // namespace jointmae
