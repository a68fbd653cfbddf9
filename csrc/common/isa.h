// Instruction sets. Each <op>_cpu.cpp is compiled once per level, with the level's compiler flags; its kernels are
// templates over `Isa`, so that the copies have different names, and end in instantiations for `kIsa`, the level of
// this translation unit. `run_isa` picks the best copy that this processor has.
//
// What an <op>_cpu.cpp must not do: instantiate a function template that does not have `Isa` (or a lambda of such a
// kernel) among its arguments, std containers included. The linker keeps one copy of those, and if it kept the AVX-512
// one, an older processor would run it. Scratch memory comes from common/scratch.h for that reason.
#pragma once

namespace jointmae {

enum class Isa { scalar = 0, avx2 = 1, avx512 = 2 };

#if defined(__AVX512F__)
inline constexpr Isa kIsa = Isa::avx512;
#elif defined(__AVX2__)
inline constexpr Isa kIsa = Isa::avx2;
#else
inline constexpr Isa kIsa = Isa::scalar;
#endif

// The best level that this processor has and that was built; the environment variable JOINTMAE_ISA=scalar|avx2|avx512
// lowers it. Read once. Throws std::invalid_argument for a value that is none of these or that this processor lacks.
Isa run_isa();

const char* isa_name(Isa isa);

// Calls `call(level)` with the run-time level as a compile-time constant: `call` is a generic lambda.
template <Isa isa>
struct IsaConstant {
  static constexpr Isa value = isa;
};

template <typename Call>
auto dispatch_isa(Call&& call) {
#if defined(JOINTMAE_X86)
  const Isa isa = run_isa();
  if (isa == Isa::avx512) return call(IsaConstant<Isa::avx512>{});
  if (isa == Isa::avx2) return call(IsaConstant<Isa::avx2>{});
#endif
  return call(IsaConstant<Isa::scalar>{});
}

}  // namespace jointmae
