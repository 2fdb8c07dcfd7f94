// Which instruction set the CPU kernels use: decided once, at the first call.
#include "../common/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fastinv {

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "portable";
  }
}

bool cpu_isa_available(Isa isa) {
#if defined(FASTINV_HAVE_AVX2) && defined(FASTINV_HAVE_AVX512)
  // These also ask the operating system whether it saves the wide registers.
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return isa == Isa::portable || (isa == Isa::avx2 && avx2) || (isa == Isa::avx512 && avx512);
#else
  return isa == Isa::portable;
#endif
}

static Isa decide() {
  Isa best = Isa::portable;
  for (Isa isa : {Isa::avx2, Isa::avx512}) {
    if (cpu_isa_available(isa)) best = isa;
  }
  const char* wanted = std::getenv("FASTINV_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (std::string(wanted) == isa_name(isa)) {
      if (cpu_isa_available(isa)) return isa;
      throw std::runtime_error("FASTINV_CPU_ISA=" + std::string(wanted) +
                               ": this machine or this build does not have it; unset it, or use " + isa_name(best));
    }
  }
  throw std::runtime_error("FASTINV_CPU_ISA=" + std::string(wanted) + ": must be portable, avx2 or avx512");
}

Isa cpu_isa() {
  static const Isa isa = decide();
  return isa;
}

}  // namespace fastinv
